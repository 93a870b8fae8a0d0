//! The only place that calls bpf(2). Each function wraps one command; the layouts are parts
//! of `union bpf_attr`, each up to the last field that this crate uses and that Linux 5.10 has.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

#[cfg(feature = "conformance")]
pub(super) mod ids;
pub(super) mod map;
pub(super) mod program;

/// `enum bpf_cmd`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    ProgramLoad = 5,
    ProgramTestRun = 10,
    #[cfg(feature = "conformance")]
    ProgramNextId = 11,
    #[cfg(feature = "conformance")]
    MapNextId = 12,
    ObjectInfo = 15,
    RawTracepointOpen = 17,
    BtfLoad = 18,
    MapFreeze = 22,
    MapLookupBatch = 24,
    MapLookupAndDeleteBatch = 25,
    MapUpdateBatch = 26,
    MapDeleteBatch = 27,
    LinkCreate = 28,
    EnableStatistics = 32,
    IteratorCreate = 33,
}

/// Implemented only by the `#[repr(C)]` structs of this module.
trait Attr {}

/// A descriptor in the unsigned form of `union bpf_attr`.
fn number(fd: &impl AsRawFd) -> u32 {
    fd.as_raw_fd() as u32
}

fn call(command: Command, attr: &mut impl Attr) -> io::Result<i32> {
    #[expect(unsafe_code, reason = "aya wraps only what its own loader needs")]
    // SAFETY: attr outlives the call and has the given size. Only this module implements
    // Attr, and its functions set pointers and lengths from live slices and values.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attr),
            size_of_val(attr),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn open(command: Command, attr: &mut impl Attr) -> io::Result<OwnedFd> {
    let fd = call(command, attr)?;
    #[expect(unsafe_code, reason = "the system call returns a number")]
    // SAFETY: the kernel has just opened it for this process; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[repr(C)]
#[derive(Default)]
struct EnableStatistics {
    kind: u32,
}

impl Attr for EnableStatistics {}

/// Makes the kernel measure the run time of programs until the result is dropped.
pub(super) fn enable_statistics() -> io::Result<OwnedFd> {
    const RUN_TIME: u32 = 0;
    open(Command::EnableStatistics, &mut EnableStatistics { kind: RUN_TIME })
}
