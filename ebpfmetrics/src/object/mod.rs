//! BPF objects: loading, programs, maps. The only module that uses aya, aya_obj and bpf(2).

mod attach;
mod bpf;
mod error;
mod loader;
mod map_handle;
mod maps;
#[allow(clippy::module_inception, reason = "one type per file")]
mod object;
mod programs;
mod relocate;
mod ring;
mod statistics;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod types;
mod verifier_error;

#[cfg(feature = "conformance")]
pub(crate) use self::bpf::ids::{map_ids, program_ids};
#[cfg(test)]
pub(crate) use self::types::enumerators;
pub use self::{loader::ObjectLoader, map_handle::MapHandle, object::Object};
pub(crate) use self::{ring::Ring, statistics::enable_statistics};
