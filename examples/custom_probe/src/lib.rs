//! A probe by somebody else: system calls per process.
//!
//! It has its own BPF object and uses nothing but the public API of `ebpfmetrics`;
//! with that it has windows, streams, joins, groups and deltas as any probe there.
//! `docs/custom-probe.md` walks through it.
//!
//! ```no_run
//! use custom_probe::SyscallProbe;
//! use ebpfmetrics::Probe;
//!
//! let mut probe = SyscallProbe::builder().load()?;
//! std::thread::sleep(std::time::Duration::from_secs(1));
//! let second = probe.reset()?;
//! for process in &second.processes {
//!     let calls = second.window.per_second(process.usage.calls);
//!     println!("{} {}: {calls} calls per second", process.id, process.info.comm);
//! }
//! # Ok::<(), ebpfmetrics::Error>(())
//! ```

mod decode;
mod probe;
mod record;
mod snapshot;

pub use probe::{SyscallProbe, SyscallProbeBuilder};
pub use snapshot::{SyscallFolded, SyscallProcess, SyscallSnapshot, SyscallUsage};

/// ELF is read in place, which takes 8-byte alignment.
#[repr(C, align(8))]
struct Aligned<T>(T);

static OBJECT: &[u8] = &Aligned(*include_bytes!("../objects/syscalls.bpf.o")).0;
