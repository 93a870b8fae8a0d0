use std::{
    fs, io,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

/// A numeric field of `/proc/self/fdinfo` for an open descriptor.
pub(crate) fn fd_info(fd: BorrowedFd<'_>, field: &str) -> io::Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = fs::read_to_string(&path)?;
    let value = |line: &str| line.strip_prefix(field)?.strip_prefix(':')?.trim().parse().ok();
    let missing = || io::Error::other(format!("no field {field} in {path}"));
    text.lines().find_map(value).ok_or_else(missing)
}

/// Waits until the descriptor is readable or the timeout has passed. Returns whether it is
/// readable.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let ready = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout))?;
    Ok(ready > 0)
}
