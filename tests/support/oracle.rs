//! What the kernel says itself, read from `/proc` and by system calls.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// `/proc/PID/task/*/schedstat`, summed up. For threads that are not running it
/// is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedstat {
    pub cpu_ns: u64,
    pub wait_ns: u64,
}

/// `None` if the process is gone.
pub fn schedstat(pid: u32) -> Option<Schedstat> {
    let mut sum = Schedstat::default();
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        let mut figures = text.split_whitespace().map(|figure| figure.parse::<u64>().unwrap());
        sum.cpu_ns += figures.next()?;
        sum.wait_ns += figures.next()?;
    }
    Some(sum)
}

/// CPU time of a thread of this process by schedstat: as of the last tick.
pub fn schedstat_of_thread(tid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

/// The threads of this process.
pub fn thread_ids() -> BTreeSet<u32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks.map(|task| task.file_name().to_str().unwrap().parse().unwrap()).collect()
}

const CPUCLOCK_SCHED: libc::clockid_t = 2;
const CPUCLOCK_PERTHREAD: libc::clockid_t = 4;

/// The CPU clock of a process; of another process as of the last tick.
pub fn process_cpu_ns(pid: u32) -> Option<u64> {
    clock_ns((!(pid as libc::clockid_t) << 3) | CPUCLOCK_SCHED)
}

/// The CPU clock of a thread of this process, as of now.
pub fn thread_cpu_ns(tid: u32) -> Option<u64> {
    clock_ns((!(tid as libc::clockid_t) << 3) | CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED)
}

pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC).unwrap()
}

#[expect(unsafe_code, reason = "rustix has no clocks of other threads and processes")]
fn clock_ns(clock: libc::clockid_t) -> Option<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills in what it is given.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    (result == 0).then(|| time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// A figure of `/proc/PID/status`, of all threads together.
pub fn status_field(pid: u32, field: &str) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let figure = |path: std::path::PathBuf| -> u64 {
        let text = fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
    };
    tasks.map(|task| figure(task.path().join("status"))).sum()
}

/// Times of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug)]
pub struct ProcStat {
    pub user_ticks: u64,
    pub system_ticks: u64,
    pub start_ticks: u64,
}

/// `/proc/PID/stat`; a tick is 10 ms.
pub fn proc_stat(pid: u32) -> ProcStat {
    let stat = procfs::process::Process::new(pid as i32).unwrap().stat().unwrap();
    ProcStat { user_ticks: stat.utime, system_ticks: stat.stime, start_ticks: stat.starttime }
}

/// How much a figure of a running process may be ahead of the kernel's for a while: up to
/// a tick, where a hypervisor takes CPUs away (by `/proc/stat`) and does not tell of each.
pub fn stolen_unseen_ns() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let steal = stat.lines().next().unwrap().split_whitespace().nth(8);
    if steal.is_some_and(|ticks| ticks != "0") { 4_000_000 } else { 0 }
}

/// Idle and I/O wait time of all CPUs by `/proc/stat`, in ns; a tick is 10 ms.
pub fn total_idle() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let line = text.lines().next().unwrap();
    let figures: Vec<u64> = line.split_whitespace().skip(1).map(|f| f.parse().unwrap()).collect();
    (figures[3] + figures[4]) * 10_000_000
}

/// Interrupt, soft interrupt, stolen and guest time of each CPU by `/proc/stat`, in ticks of
/// 10 ms.
pub fn cpu_columns() -> Vec<[u64; 4]> {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let lines = text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
    let columns = |line: &str| -> Vec<u64> {
        line.split_whitespace().skip(1).map(|figure| figure.parse().unwrap()).collect()
    };
    lines.map(columns).map(|it| [it[5], it[6], it[7], it[8] + it[9]]).collect()
}

/// CPU time of the processes that `/proc` lists and an iterator of this machine
/// does not: its first process is hidden from eBPF. Empty where nothing is hidden.
pub fn hidden_tasks_ns(seen: impl Fn(u32) -> bool) -> BTreeMap<u32, u64> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| !seen(*pid)).filter_map(|pid| Some((pid, process_cpu_ns(pid)?))).collect()
}

/// Has the kernel count how often BPF programs run, until this is dropped.
pub struct ProgramStatistics {
    before: String,
}

impl ProgramStatistics {
    const PATH: &str = "/proc/sys/kernel/bpf_stats_enabled";

    pub fn enable() -> Self {
        let before = fs::read_to_string(Self::PATH).unwrap();
        fs::write(Self::PATH, "1").unwrap();
        Self { before }
    }
}

impl Drop for ProgramStatistics {
    fn drop(&mut self) {
        let _ = fs::write(Self::PATH, &self.before);
    }
}

/// Programs and maps in the kernel, by id.
#[derive(Debug)]
pub struct LoadedObjects {
    pub programs: BTreeSet<u32>,
    pub maps: BTreeSet<u32>,
}

pub fn loaded_objects() -> LoadedObjects {
    const PROGRAM_NEXT_ID: libc::c_long = 11;
    const MAP_NEXT_ID: libc::c_long = 12;
    LoadedObjects { programs: ids(PROGRAM_NEXT_ID), maps: ids(MAP_NEXT_ID) }
}

/// By number alone. To open a program array that is just being freed, as aya does to
/// list it, makes kernels (6.18, 7.3) keep it for good: they clear it whenever its
/// last descriptor is closed, and take a reference for each time but drop one only.
fn ids(command: libc::c_long) -> BTreeSet<u32> {
    // `union bpf_attr`: start_id, next_id, open_flags
    let mut attr = [0_u32; 3];
    let mut ids = BTreeSet::new();
    loop {
        #[expect(unsafe_code, reason = "aya lists by opening")]
        // SAFETY: attr outlives the call and has the size that is given.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(&attr)) };
        if result < 0 {
            return ids;
        }
        attr[0] = attr[1];
        ids.insert(attr[1]);
    }
}
