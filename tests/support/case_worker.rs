//! Workloads that other tools, or earlier versions of this library, measured wrongly.

use std::{
    io,
    os::unix::process::CommandExt as _,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use ebpfmetrics::{CpuProbe, Filter, Probe as _, group::ProcessTree};
use ebpfmetrics_suite::{self as suite, fork, wait_for};

use crate::{spin, spin_for, tell};

fn park() -> ! {
    loop {
        thread::park();
    }
}

fn next_line() -> io::Result<bool> {
    Ok(io::stdin().read_line(&mut String::new())? > 0)
}

pub(crate) fn exec_by_thread(spin_ms: u64) -> anyhow::Result<()> {
    tell(&std::process::id().to_string())?;
    let thread = thread::spawn(move || {
        spin_for(Duration::from_millis(spin_ms));
        Command::new("/proc/self/exe").args(["spin-for", &spin_ms.to_string()]).exec()
    });
    Err(thread.join().expect("exec does not panic").into())
}

pub(crate) fn real_time(busy: Duration, period: Duration) -> anyhow::Result<()> {
    suite::pin_to_cpu(0)?;
    suite::become_real_time()?;
    tell("started")?;
    loop {
        let start = Instant::now();
        while start.elapsed() < busy {}
        thread::sleep(period - busy);
    }
}

pub(crate) fn threads_come_and_go(spin: Duration) -> anyhow::Result<()> {
    tell("started")?;
    loop {
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(move || spin_for(spin));
            }
        });
    }
}

pub(crate) fn starving() -> anyhow::Result<()> {
    suite::pin_to_cpu(0)?;
    let parent = std::process::id();
    let starving = fork(|| {
        suite::die_with(parent);
        suite::be_nice(19);
        spin()
    })?;
    tell(&starving.to_string())?;
    spin()
}

pub(crate) fn among(sleepers: u32) -> anyhow::Result<()> {
    let parent = std::process::id();
    for _ in 0..sleepers {
        fork(|| {
            suite::die_with(parent);
            park()
        })?;
    }
    tell("spinning")?;
    spin()
}

pub(crate) fn reap_late(count: u32, work: Duration, pause: Duration) -> anyhow::Result<()> {
    let mut children = Vec::new();
    for _ in 0..count {
        children.push(fork(|| spin_for(work))?);
    }
    for &child in &children {
        suite::wait_without_reaping(child)?;
    }
    tell("ended")?;
    next_line()?;
    let mut used_ns = 0;
    for child in children {
        used_ns += wait_for(child)?;
        thread::sleep(pause);
    }
    tell(&used_ns.to_string())?;
    park()
}

pub(crate) fn zombies(count: u32) -> anyhow::Result<()> {
    for _ in 0..count {
        fork(|| ())?;
    }
    tell("zombies")?;
    while next_line()? {
        let mut late = Vec::new();
        for _ in 0..100 {
            late.push(fork(|| {
                suite::become_user(1000).expect("the test is root");
                spin_for(Duration::from_millis(2));
            })?);
        }
        late.iter().try_for_each(|&child| wait_for(child).map(drop))?;
        let pids: Vec<_> = late.iter().map(u32::to_string).collect();
        tell(&pids.join(" "))?;
    }
    Ok(())
}

pub(crate) fn double_fork(work: Duration) -> anyhow::Result<()> {
    tell("ready")?;
    next_line()?;
    let child = fork(|| {
        let grandchild = fork(|| {
            spin_for(work);
            thread::sleep(Duration::from_secs(2));
        });
        tell(&grandchild.expect("a start").to_string()).expect("the test reads");
    })?;
    wait_for(child)?;
    park()
}

pub(crate) fn on_overlay(directory: &str) -> anyhow::Result<()> {
    suite::become_user(1000)?;
    tell("calling")?;
    let end = Instant::now() + Duration::from_secs(20);
    for number in (0..50).cycle().take_while(|_| Instant::now() < end) {
        let file = format!("{directory}/{number}");
        std::fs::write(&file, "")?;
        std::fs::metadata(&file)?;
        std::fs::remove_file(&file)?;
    }
    Ok(())
}

pub(crate) fn in_time_namespace(ahead_s: u64) -> anyhow::Result<()> {
    if let Err(error) = suite::enter_time_namespace(ahead_s) {
        return Ok(tell(&format!("no {error}"))?);
    }
    suite::fork_and_wait(None, || read_children().expect("the caller is root"))?;
    Ok(())
}

/// `ended=N right_start=N in_window=N ours_ns=N truth_ns=N`
fn read_children() -> anyhow::Result<()> {
    let mut probe = CpuProbe::builder().load()?;
    let (mut ended, mut right_start, mut in_window) = (0, 0, 0);
    let (mut ours_ns, mut truth_ns) = (0, 0);
    for _ in 0..40 {
        let (pid, used_ns) = suite::fork_and_wait(None, || spin_for(Duration::from_millis(5)))?;
        truth_ns += used_ns;
        let snapshot = probe.reset()?;
        let own = snapshot.process(std::process::id()).context("no row of its own")?.id;
        let Some(row) = snapshot.process(pid).filter(|row| row.info.exited) else { continue };
        ended += 1;
        // on the clock of the host, as that of its parent
        let age = row.id.start_time_ns.checked_sub(own.start_time_ns);
        right_start += u32::from(age.is_some_and(|age| age < 100_000_000_000));
        in_window += u32::from(row.usage.cpu_time <= snapshot.window.duration());
        ours_ns += row.usage.cpu_time.as_nanos() as u64;
    }
    let counts = format!("ended={ended} right_start={right_start} in_window={in_window}");
    Ok(tell(&format!("{counts} ours_ns={ours_ns} truth_ns={truth_ns}"))?)
}

/// `own=PID tree=PIDS listed=PIDS row=PID members=NUMBER child=PID`, with the pids of that
/// namespace.
pub(crate) fn filter_in_namespace() -> anyhow::Result<()> {
    suite::in_pid_namespace(true, || {
        // so that the pids of the parent and of the child are not the same as outside
        let own = std::process::id();
        let child = fork(|| park()).expect("a child");
        let pids = |filter: Filter| {
            let mut probe = CpuProbe::builder().filter(filter).load().expect("the pids exist");
            let rows = probe.snapshot().expect("a snapshot").processes;
            rows.iter().map(|row| row.info.namespace_pid.to_string()).collect::<Vec<_>>().join(",")
        };
        let (tree, listed) = (pids(Filter::tree(own)), pids(Filter::processes([child])));
        let mut probe = CpuProbe::builder().load().expect("a probe");
        let id = probe.process_id(child).expect("the pids are readable").expect("it lives");
        let snapshot = probe.snapshot().expect("a snapshot");
        let row = snapshot.row(id).expect("a row").info.namespace_pid;
        let mut family = ProcessTree::of_process(id);
        let members = family.group(&snapshot).alive;
        tell(&format!(
            "own={own} tree={tree} listed={listed} row={row} members={members} child={child}"
        ))
        .expect("a reader");
    })
}

pub(crate) fn switch_user() -> anyhow::Result<()> {
    suite::become_effective_user(1000)?;
    tell("switched")?;
    spin()
}
