//! Only the lower layers, until the rest is integrated.
#![allow(dead_code, unused_imports)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr))]

mod error;
mod kernel;
mod object;

pub use error::{Error, ErrorKind, MAX_EXITED, Result, check_option};
pub use kernel::{Kernel, Requirements, in_initial_pid_namespace};
pub use object::{MapHandle, Object, ObjectLoader};
