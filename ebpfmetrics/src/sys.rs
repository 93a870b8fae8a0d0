//! System calls that aya 0.14 does not wrap.

use std::{
    fs, io,
    ops::Deref,
    os::fd::{AsRawFd, BorrowedFd},
    path::Path,
};

use bytemuck::Pod;

use crate::{Error, ErrorKind, Result};

/// `struct { .. } batch` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// `enum bpf_cmd`
#[derive(Clone, Copy)]
enum BatchCommand {
    Lookup = 24,
    LookupAndDelete = 25,
    Update = 26,
    Delete = 27,
}

fn bpf(command: BatchCommand, attr: &mut BatchAttr) -> io::Result<()> {
    #[expect(unsafe_code, reason = "aya 0.14 has no batch operations")]
    // SAFETY: attr outlives the call and is as long as its given size; the
    // callers below point it at buffers of the length that they state.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attr),
            size_of::<BatchAttr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Every entry of a hash map; the key and value types have the map's sizes.
pub(crate) fn read_all<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    batches(map, BatchCommand::Lookup)
}

/// As [`read_all`], and takes the entries out of the map.
pub(crate) fn take_all<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    batches(map, BatchCommand::LookupAndDelete)
}

fn batches<K: Pod, V: Pod>(map: BorrowedFd<'_>, command: BatchCommand) -> io::Result<Vec<(K, V)>> {
    // Room for the largest cursor of any map type: a hash map's is a bucket
    // number, others use a key.
    let (mut cursor, mut next) = ([0_u8; 64], [0_u8; 64]);
    let mut first = true;
    let mut chunk = 512;
    let mut entries = Vec::new();
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    loop {
        keys.resize(chunk, K::zeroed());
        values.resize(chunk, V::zeroed());
        let mut attr = BatchAttr {
            in_batch: if first { 0 } else { cursor.as_ptr() as u64 },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: chunk as u32,
            map_fd: map.as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        let result = bpf(command, &mut attr);
        match result.as_ref().map_err(io::Error::raw_os_error) {
            Ok(()) | Err(Some(libc::ENOENT)) => {
                let count = attr.count as usize;
                entries.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
                if result.is_err() {
                    return Ok(entries); // ENOENT: the map has no more
                }
                cursor = next;
                first = false;
            }
            // one bucket holds more than the chunk
            Err(Some(libc::ENOSPC)) => chunk *= 2,
            Err(Some(libc::EINTR)) => {}
            Err(_) => return result.map(|()| entries),
        }
    }
}

/// Elements of an array map from `first` on, at most `count`; fewer at its end.
pub(crate) fn read_elements<V: Pod>(
    map: BorrowedFd<'_>,
    first: u32,
    count: usize,
) -> io::Result<Vec<V>> {
    let (mut keys, mut values) = (vec![0_u32; count], vec![V::zeroed(); count]);
    // an array map goes on behind the key that it is given
    let before = first.wrapping_sub(1);
    let mut next = 0_u32;
    let mut attr = BatchAttr {
        in_batch: if first == 0 { 0 } else { std::ptr::from_ref(&before) as u64 },
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: count as u32,
        map_fd: map.as_raw_fd() as u32,
        ..BatchAttr::default()
    };
    match bpf(BatchCommand::Lookup, &mut attr).map_err(|e| (e.raw_os_error(), e)) {
        Ok(()) | Err((Some(libc::ENOENT), _)) => {
            values.truncate(attr.count as usize);
            Ok(values)
        }
        Err((_, error)) => Err(error),
    }
}

/// Puts entries, in place of those that are there; the key and value types have the
/// map's sizes.
pub(crate) fn put_all<K: Pod, V: Pod>(map: BorrowedFd<'_>, entries: &[(K, V)]) -> io::Result<()> {
    let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
    let mut done = 0;
    while done < keys.len() {
        let mut attr = BatchAttr {
            keys: keys[done..].as_ptr() as u64,
            values: values[done..].as_ptr() as u64,
            count: (keys.len() - done) as u32,
            map_fd: map.as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        match bpf(BatchCommand::Update, &mut attr) {
            Ok(()) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => done += attr.count as usize,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Deletes entries; those already gone are no error.
pub(crate) fn delete_all<K: Pod>(map: BorrowedFd<'_>, mut keys: &[K]) -> io::Result<()> {
    while !keys.is_empty() {
        let mut attr = BatchAttr {
            keys: keys.as_ptr() as u64,
            count: keys.len() as u32,
            map_fd: map.as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        match bpf(BatchCommand::Delete, &mut attr).map_err(|e| (e.raw_os_error(), e)) {
            Ok(()) => return Ok(()),
            // stopped at a key that is gone: step over it
            Err((Some(libc::ENOENT), _)) => {
                keys = &keys[(attr.count as usize + 1).min(keys.len())..]
            }
            Err((Some(libc::EINTR), _)) => {}
            Err((_, error)) => return Err(error),
        }
    }
    Ok(())
}

/// What is in a file that nobody writes.
pub(crate) enum Contents {
    /// The kernel's own memory, seen through a window.
    Mapped(Mapped),
    /// A copy.
    Copied(Vec<u8>),
}

impl Contents {
    /// Without a copy where the kernel can (its BTF since 6.15).
    pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        Mapped::new(path).map(Self::Mapped).or_else(|_| fs::read(path).map(Self::Copied))
    }
}

impl Deref for Contents {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(mapped) => mapped.0,
            Self::Copied(bytes) => bytes,
        }
    }
}

/// Lent for as long as this lives.
pub(crate) struct Mapped(&'static [u8]);

impl Mapped {
    fn new(path: &Path) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};

        let file = fs::File::open(path)?;
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        #[expect(unsafe_code, reason = "reading it 4 KiB at a time takes 1,400 system calls")]
        // SAFETY: the mapping is new, nobody else knows it, and it is there until drop.
        // The file is one that never changes while the kernel runs.
        unsafe {
            let start =
                mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, &file, 0)?;
            Ok(Self(std::slice::from_raw_parts(start.cast(), length)))
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "the counterpart of mmap")]
        // SAFETY: it was mapped so, and is lent no longer than it lives.
        unsafe {
            let _ = rustix::mm::munmap(self.0.as_ptr().cast_mut().cast(), self.0.len());
        }
    }
}

/// Gives memory back that reading the kernel's BTF left in malloc's hands.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "no crate wraps malloc_trim")]
    // SAFETY: malloc_trim takes no pointer and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A figure that the kernel tells of an open descriptor.
pub(crate) fn fd_info(fd: BorrowedFd<'_>, field: &str) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let of_line = |line: &str| line.strip_prefix(field)?.strip_prefix(':')?.trim().parse().ok();
    text.lines().find_map(of_line).ok_or_else(|| io::Error::other(format!("no {field} in fdinfo")))
}

/// Waits until there is something to read, at most so long; whether there is.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, timeout: std::time::Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let ready = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout))?;
    Ok(ready > 0)
}

/// What perf events know a tracepoint by.
pub(crate) fn tracepoint_id(category: &str, tracepoint: &str) -> io::Result<u64> {
    let read = |tracefs| fs::read_to_string(format!("{tracefs}/events/{category}/{tracepoint}/id"));
    let id = read("/sys/kernel/tracing").or_else(|_| read("/sys/kernel/debug/tracing"))?;
    id.trim().parse().map_err(io::Error::other)
}

/// `CLOCK_MONOTONIC` in ns, the clock of `bpf_ktime_get_ns()`.
pub(crate) fn monotonic_ns() -> u64 {
    nanoseconds(rustix::time::ClockId::Monotonic)
}

/// `CLOCK_BOOTTIME` in ns, the clock of start times.
pub(crate) fn boottime_ns() -> u64 {
    nanoseconds(rustix::time::ClockId::Boottime)
}

/// CPU time of the calling thread. Asking makes the scheduler bring the books of
/// this CPU up to date, which is what the callers are after.
pub(crate) fn thread_cpu_time_ns() -> u64 {
    nanoseconds(rustix::time::ClockId::ThreadCPUTime)
}

fn nanoseconds(clock: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// How many CPUs are online.
pub(crate) fn online_cpus() -> Result<usize> {
    cpus("online").map(|ranges| ranges.map(|(first, last)| (last - first + 1) as usize).sum())
}

/// One more than the highest number that a CPU may ever have here.
pub(crate) fn possible_cpus() -> Result<u32> {
    cpus("possible").map(|ranges| ranges.map(|(_, last)| last + 1).max().unwrap_or(1))
}

/// Ranges such as `0-3,8` in sysfs.
fn cpus(which: &str) -> Result<impl Iterator<Item = (u32, u32)>> {
    let path = format!("/sys/devices/system/cpu/{which}");
    let invalid = || Error::new(ErrorKind::System, format!("{path} cannot be read"));
    let text = std::fs::read_to_string(&path).map_err(|error| invalid().with_source(error))?;
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    let ranges: Option<Vec<_>> = text.trim().split(',').map(range).collect();
    ranges.map(Vec::into_iter).ok_or_else(invalid)
}
