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

/// Becomes another user, with no way back.
#[expect(unsafe_code, reason = "setresuid(2)")]
pub fn become_user(uid: u32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(uid, uid, uid))?;
        check(libc::setresuid(uid, uid, uid))
    }
}

/// Acts as another user, and stays what it is.
#[expect(unsafe_code, reason = "setresuid(2)")]
pub fn become_effective_user(uid: u32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::setresuid(libc::uid_t::MAX, uid, libc::uid_t::MAX) })
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

pub(crate) fn mount(kind: &str, path: &str) -> io::Result<()> {
    mount_with(kind, path, "")
}

/// Mounts a file system of its own with options of its own.
#[expect(unsafe_code, reason = "mount(2)")]
pub(crate) fn mount_with(kind: &str, path: &str, options: &str) -> io::Result<()> {
    let [kind, path, options] = [kind, path, options].map(CString::new);
    let (kind, path, options) = (kind?, path?, options?);
    let data = options.as_ptr().cast();
    // SAFETY: strings that outlive the call.
    check(unsafe { libc::mount(kind.as_ptr(), path.as_ptr(), kind.as_ptr(), 0, data) })
}

/// An overlay file system, unmounted when dropped.
pub struct Overlay {
    base: tempfile::TempDir,
}

impl Overlay {
    pub fn mount() -> io::Result<Self> {
        let base = tempfile::tempdir()?;
        // an overlay on an overlay has no room for its work
        mount("tmpfs", &base.path().display().to_string())?;
        let this = Self { base };
        let path = |name: &str| this.base.path().join(name).display().to_string();
        for name in ["lower", "upper", "work", "all"] {
            std::fs::create_dir(path(name))?;
        }
        use std::os::unix::fs::PermissionsExt as _;
        let open = || std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(this.base.path(), open())?;
        std::fs::set_permissions(path("upper"), open())?;
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            path("lower"),
            path("upper"),
            path("work")
        );
        mount_with("overlay", &path("all"), &options)?;
        std::fs::set_permissions(path("all"), open())?;
        Ok(this)
    }

    pub fn path(&self) -> std::path::PathBuf {
        self.base.path().join("all")
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        for path in [self.path(), self.base.path().to_owned()] {
            if let Ok(path) = CString::new(path.display().to_string()) {
                #[expect(unsafe_code, reason = "umount2(2)")]
                // SAFETY: a string that outlives the call.
                unsafe {
                    libc::umount2(path.as_ptr(), libc::MNT_DETACH);
                }
            }
        }
    }
}

/// Lets processes that are started from here on have clocks that are ahead by so many
/// seconds.
#[expect(unsafe_code, reason = "unshare(2)")]
pub fn enter_time_namespace(ahead_s: u64) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::unshare(libc::CLONE_NEWTIME) })?;
    let offsets = format!("monotonic {} 0\nboottime {ahead_s} 0\n", ahead_s / 2);
    std::fs::write("/proc/self/timens_offsets", offsets)
}

/// Gives this process mounts of its own, with some cgroup file systems alone: each a
/// directory below `/sys/fs/cgroup`, and the controller that it is of, or `None` for
/// the unified hierarchy.
#[expect(unsafe_code, reason = "unshare(2)")]
pub fn mount_cgroups(mounts: &[(&str, Option<&str>)]) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    make_mounts_private()?;
    // what is there is left behind below it
    let mounted = std::fs::read_to_string("/proc/self/mounts")?;
    let is_cgroup = |line: &&str| matches!(line.split(' ').nth(2), Some("cgroup" | "cgroup2"));
    for line in mounted.lines().filter(is_cgroup) {
        let path = CString::new(line.split(' ').nth(1).unwrap_or_default())?;
        // SAFETY: a string that outlives the call.
        check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) })?;
    }
    mount("tmpfs", "/sys/fs/cgroup")?;
    for (directory, controller) in mounts {
        let path = format!("/sys/fs/cgroup/{directory}");
        std::fs::create_dir(&path)?;
        match controller {
            None => mount("cgroup2", &path)?,
            Some(controller) => mount_with("cgroup", &path, controller)?,
        }
    }
    Ok(())
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
