//! Worse places to load a probe in.

use std::{ffi::CString, io};

#[derive(Clone, Copy, Debug)]
pub enum Capability {
    Perfmon = 38,
    Bpf = 39,
}

/// Becomes another user that keeps only these capabilities.
#[expect(unsafe_code, reason = "capset(2) has no wrapper in libc")]
pub fn keep_capabilities(keep: &[Capability]) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    const NOBODY: libc::uid_t = 65534;

    let set: u64 = keep.iter().map(|capability| 1 << (*capability as u32)).sum();
    let half = |shift: u32| {
        let bits = (set >> shift) as u32;
        Data { effective: bits, permitted: bits, inheritable: 0 }
    };
    let header = Header { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
    let data = [half(0), half(32)];
    // SAFETY: the structs are as capset(2) has them and outlive the call.
    unsafe {
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1))?;
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(NOBODY, NOBODY, NOBODY))?;
        check(libc::setresuid(NOBODY, NOBODY, NOBODY))?;
        check(libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) as i32)?;
        // a change of user makes a process undumpable, and its /proc root's
        check(libc::prctl(libc::PR_SET_DUMPABLE, 1))
    }
}

pub fn limit_memlock(bytes: u64) -> io::Result<()> {
    let limit = rustix::process::Rlimit { current: Some(bytes), maximum: Some(bytes) };
    rustix::process::setrlimit(rustix::process::Resource::Memlock, limit)?;
    Ok(())
}

/// Makes a directory look empty to this process and its children.
#[expect(unsafe_code, reason = "unshare(2)")]
pub fn hide_directory(path: &str) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    make_mounts_private()?;
    mount("tmpfs", path)
}

/// Keeps what is mounted from here on out of the rest of the machine.
#[expect(unsafe_code, reason = "mount(2)")]
pub(crate) fn make_mounts_private() -> io::Result<()> {
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    let null = std::ptr::null();
    // SAFETY: changing the propagation takes a path and flags alone.
    check(unsafe { libc::mount(null, c"/".as_ptr(), null, flags, null.cast()) })
}

#[expect(unsafe_code, reason = "mount(2)")]
pub(crate) fn mount(kind: &str, path: &str) -> io::Result<()> {
    let (kind, path) = (CString::new(kind)?, CString::new(path)?);
    // SAFETY: strings that outlive the call.
    check(unsafe { libc::mount(kind.as_ptr(), path.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) })
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
