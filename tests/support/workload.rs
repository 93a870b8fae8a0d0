//! What the tests measure: processes whose work is known.
//!
//! Each writes a line to standard output once it is under way and dies with the
//! thread that started it, so that no test can leave one behind.

mod disk_work;

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

#[path = "case_worker.rs"]
mod case_worker;
#[path = "cgroup_worker.rs"]
mod cgroup_worker;
#[path = "job_worker.rs"]
mod job_worker;
#[path = "memory_worker.rs"]
mod memory_worker;
#[path = "slab_worker.rs"]
mod slab_worker;

use anyhow::Context as _;
use clap::Parser;
use ebpfmetrics::{
    CpuProbe, MemProbe, Probe as _, ProcessId, cpu::CpuAccounting, mem::ProportionalMemory,
};
use ebpfmetrics_suite::{self as suite, process_cpu_ns};

#[derive(Parser)]
enum Work {
    /// Threads that never give up their CPU.
    Spin {
        #[arg(default_value_t = 1)]
        threads: usize,
    },
    /// Wakes up so many times a second and works a little.
    Wake { per_second: u32 },
    /// Pairs of threads that hand a token to each other without end.
    PingPong { pairs: usize },
    /// Short-lived processes one after another, each a spin of so many us; then
    /// tells their rusage in ns.
    Children { count: u32, spin_us: u64 },
    /// Threads one after another, each a spin of so many us, without end.
    Threads { spin_us: u64 },
    /// A child, and another with the same pid once it is gone; each spins for so
    /// many ms. Tells the pid, then what each used in ns.
    ReusePid { first_ms: u64, second_ms: u64 },
    /// On each line of input a child that starts an orphan and ends; tells both pids.
    Orphans { spin_ms: u64 },
    /// Waits for its parent's end, spins for so many ms, and ends.
    Orphan { parent: u32, spin_ms: u64 },
    /// In mounts of its own with some hierarchies of cgroups, a cgroup in each; see
    /// `cgroup_worker`.
    Cgroups {
        /// `NAME=CONTROLLER`, or `NAME` for the unified hierarchy.
        mounts: Vec<String>,
    },
    /// Executes itself as `work-after`, on a line of input, and spins.
    Exec,
    /// Tells its pid; then a thread that is not the first spins for so many ms and executes
    /// this program again, which spins for as long.
    ExecByThread { spin_ms: u64 },
    /// Spins for so many ms in all, and ends.
    SpinFor { spin_ms: u64 },
    /// Two spinning processes on one CPU, one of them at nice 19; tells the pid of that.
    Starving,
    /// At real-time priority, so many ms of every so many, on CPU 0.
    RealTime { busy_ms: u64, period_ms: u64 },
    /// Starts threads that spin for so many us, eight at a time, without end.
    ThreadsComeAndGo { spin_us: u64 },
    /// So many children that sleep; then spins.
    Among { sleepers: u32 },
    /// So many children of so many us each. On a line of input they are waited for, with so
    /// many ms in between; then tells their rusage in ns.
    ReapLate { count: u32, spin_us: u64, pause_ms: u64 },
    /// So many children that nobody waits for; then as many of user 1000 as it is told,
    /// each line of input. Tells the pids of these.
    Zombies { count: u32 },
    /// On a line of input, a child that starts a grandchild and ends at once; tells the pid
    /// of the grandchild, which spins for so many ms, and waits.
    DoubleFork { spin_ms: u64 },
    /// Calls as user 1000 into a file system that takes the credentials of its mounter.
    OnOverlay { directory: String },
    /// Reads 40 children that end, as a process whose clocks are ahead by so many seconds.
    InTimeNamespace { ahead_s: u64 },
    /// Filters by pids of a PID namespace of its own.
    FilterInNamespace,
    /// Becomes the user 1000, and takes on the rights of root for file systems and back.
    SwitchUser,
    /// Ends its first thread while another goes on to spin.
    LeaderExits,
    /// Threads that each write so many times so many bytes, and read as often, and end; tells
    /// when they have. The same by a thread that stays, which ends on a line of input.
    Calls { threads: u32, count: u32, bytes: usize },
    /// Tells the proportional memory of a process as user 1000, or the kind of the error.
    ProportionalAsUser { pid: u32, start_ns: u64 },
    /// The same as root, in a time namespace that is ahead by so many seconds.
    ProportionalAhead { pid: u32, start_ns: u64, ahead_s: u64 },
    /// Does with memory what it is told, line by line; see `memory_worker`.
    Memory,
    /// Has the kernel allocate as it is told, line by line; see `slab_worker`.
    Slab,
    /// So many datagrams, on a line of input, to a process of its own that receives
    /// them; tells the pid of that, and when all have arrived.
    Send { count: u32 },
    /// The process that receives, on its standard input.
    Receive { count: u32 },
    /// Loads a CPU probe, tells, and answers each pid with its CPU time in ns.
    HoldProbe,
    /// Work on disks.
    Disk {
        #[command(subcommand)]
        work: disk_work::DiskWork,
    },
    /// Commands of jobs, which may outlive their parents.
    Job {
        #[command(subcommand)]
        work: job_worker::JobWork,
    },
    /// Tries to load a CPU probe in a worse place, and tells how it went.
    Load {
        #[arg(value_enum)]
        place: Place,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Place {
    /// Another user, no capabilities.
    Unprivileged,
    /// Nothing but CAP_BPF and CAP_PERFMON.
    TwoCapabilities,
    /// CAP_PERFMON alone.
    WithoutCapBpf,
    /// Nothing but CAP_BPF and CAP_PERFMON, and 64 KiB of locked memory.
    LowMemlock,
    /// Kernel type information hidden.
    WithoutBtf,
    /// A PID namespace of its own.
    PidNamespace,
    /// A PID namespace of its own, with `/proc` of the initial one; a memory probe,
    /// which tells of its parent.
    PidNamespaceForeignProc,
}

fn main() -> anyhow::Result<()> {
    let work = Work::parse();
    if !matches!(work, Work::Orphan { .. } | Work::Job { .. }) {
        suite::die_with_parent();
    }
    match work {
        Work::Spin { threads } => {
            for _ in 1..threads {
                thread::spawn(spin);
            }
            tell("spinning")?;
            spin()
        }
        Work::Wake { per_second } => {
            tell("waking")?;
            let period = Duration::from_secs(1) / per_second;
            loop {
                thread::sleep(period);
                spin_for(Duration::from_micros(20));
            }
        }
        Work::PingPong { pairs } => {
            for _ in 0..pairs {
                ping_pong();
            }
            tell("switching")?;
            loop {
                thread::park();
            }
        }
        Work::Children { count, spin_us } => {
            tell("forking")?;
            let spin = Duration::from_micros(spin_us);
            for _ in 0..count {
                suite::fork_and_wait(None, || spin_for(spin))?;
            }
            tell(&suite::rusage_of_children().cpu_ns.to_string())?;
            loop {
                thread::park();
            }
        }
        Work::Threads { spin_us } => {
            tell("threading")?;
            let spin = Duration::from_micros(spin_us);
            loop {
                thread::spawn(move || spin_for(spin)).join().expect("a spin does not panic");
            }
        }
        Work::ReusePid { first_ms, second_ms } => {
            let work = |ms| move || spin_for(Duration::from_millis(ms));
            let pid = suite::fork_with_pid(None, work(first_ms))?;
            let first_ns = suite::wait_for_settled(pid)?;
            let again = suite::fork_with_pid(Some(pid), work(second_ms))?;
            let second_ns = suite::wait_for_settled(again)?;
            anyhow::ensure!(pid == again, "asked for pid {pid}, got {again}");
            tell(&format!("{pid} {first_ns} {second_ns}"))?;
            loop {
                thread::park();
            }
        }
        Work::Orphans { spin_ms } => orphans(spin_ms),
        Work::Orphan { parent, spin_ms } => {
            orphan(parent, Duration::from_millis(spin_ms));
            Ok(())
        }
        Work::Cgroups { mounts } => cgroup_worker::work(&mounts),
        Work::Exec => {
            tell("before")?;
            spin_for(Duration::from_millis(20));
            io::stdin().read_line(&mut String::new())?;
            let this = std::env::current_exe()?;
            let link = std::env::temp_dir().join("work-after");
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(this, &link)?;
            Err(Command::new(&link).args(["spin", "1"]).exec().into())
        }
        Work::ExecByThread { spin_ms } => case_worker::exec_by_thread(spin_ms),
        Work::SpinFor { spin_ms } => {
            spin_for(Duration::from_millis(spin_ms));
            tell("done")?;
            loop {
                thread::park();
            }
        }
        Work::Starving => case_worker::starving(),
        Work::RealTime { busy_ms, period_ms } => {
            case_worker::real_time(Duration::from_millis(busy_ms), Duration::from_millis(period_ms))
        }
        Work::ThreadsComeAndGo { spin_us } => {
            case_worker::threads_come_and_go(Duration::from_micros(spin_us))
        }
        Work::Among { sleepers } => case_worker::among(sleepers),
        Work::ReapLate { count, spin_us, pause_ms } => case_worker::reap_late(
            count,
            Duration::from_micros(spin_us),
            Duration::from_millis(pause_ms),
        ),
        Work::Zombies { count } => case_worker::zombies(count),
        Work::DoubleFork { spin_ms } => case_worker::double_fork(Duration::from_millis(spin_ms)),
        Work::OnOverlay { directory } => case_worker::on_overlay(&directory),
        Work::InTimeNamespace { ahead_s } => case_worker::in_time_namespace(ahead_s),
        Work::FilterInNamespace => case_worker::filter_in_namespace(),
        Work::SwitchUser => case_worker::switch_user(),
        Work::LeaderExits => {
            thread::spawn(|| {
                thread::sleep(Duration::from_millis(50));
                tell("leader gone").expect("the test reads");
                spin()
            });
            suite::exit_thread()
        }
        Work::Calls { threads, count, bytes } => {
            let each = (0..threads).map(|_| thread::spawn(move || calls(count, bytes)));
            for thread in each.collect::<Vec<_>>() {
                thread.join().expect("it does not panic")?;
            }
            calls(count, bytes)?;
            tell("done")?;
            io::stdin().read_line(&mut String::new())?;
            Ok(tell("done")?)
        }
        Work::ProportionalAsUser { pid, start_ns } => {
            suite::become_user(1000)?;
            Ok(tell(&proportional(pid, start_ns))?)
        }
        Work::ProportionalAhead { pid, start_ns, ahead_s } => {
            suite::enter_time_namespace(ahead_s)?;
            let read = || tell(&proportional(pid, start_ns)).expect("the test reads");
            Ok(suite::fork_and_wait(None, read).map(drop)?)
        }
        Work::Memory => memory_worker::serve(),
        Work::Slab => slab_worker::serve(),
        Work::Send { count } => slab_worker::send(count),
        Work::Receive { count } => slab_worker::receive(count),
        Work::HoldProbe => {
            let mut probe = CpuProbe::builder().accounting(CpuAccounting::SchedSwitch).load()?;
            tell("loaded")?;
            for pid in io::stdin().lines() {
                let snapshot = probe.snapshot()?;
                let row = snapshot.process(pid?.parse()?).context("no row")?;
                tell(&row.usage.cpu_time.as_nanos().to_string())?;
            }
            Ok(())
        }
        Work::Job { work } => job_worker::work(work),
        Work::Disk { work } => disk_work::work(work),
        Work::Load { place } => load(place),
    }
}

fn calls(count: u32, bytes: usize) -> io::Result<()> {
    let (mut zeros, mut nothing) = (File::open("/dev/zero")?, File::create("/dev/null")?);
    let mut buffer = vec![0; bytes];
    for _ in 0..count {
        zeros.read_exact(&mut buffer)?;
        nothing.write_all(&buffer)?;
    }
    Ok(())
}

fn tell(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

/// By its own CPU time: what a hypervisor steals is not work.
fn spin_for(time: Duration) {
    let pid = std::process::id();
    let start = process_cpu_ns(pid).unwrap_or_default();
    let deadline = Instant::now() + 20 * time + Duration::from_secs(5);
    while process_cpu_ns(pid).is_some_and(|now| now - start < time.as_nanos() as u64) {
        if Instant::now() > deadline {
            return;
        }
    }
}

fn orphans(spin_ms: u64) -> anyhow::Result<()> {
    tell("waiting")?;
    for line in io::stdin().lines() {
        line?;
        suite::fork_and_wait(None, || {
            let parent = std::process::id();
            let arguments = ["orphan".into(), parent.to_string(), spin_ms.to_string()];
            let orphan = Command::new("/proc/self/exe").args(arguments).spawn();
            tell(&format!("{parent} {}", orphan.expect("a start").id())).expect("the test reads");
        })?;
    }
    Ok(())
}

fn orphan(parent: u32, spin: Duration) {
    while std::os::unix::process::parent_id() == parent {
        thread::sleep(Duration::from_millis(1));
    }
    spin_for(spin);
}

fn ping_pong() {
    let (ping, pinged) = mpsc::sync_channel::<()>(0);
    let (pong, ponged) = mpsc::sync_channel::<()>(0);
    thread::spawn(move || while pinged.recv().is_ok() && pong.send(()).is_ok() {});
    thread::spawn(move || while ping.send(()).is_ok() && ponged.recv().is_ok() {});
}

fn load(place: Place) -> anyhow::Result<()> {
    use suite::Capability::{Bpf, Perfmon};

    match place {
        Place::Unprivileged => suite::keep_capabilities(&[])?,
        Place::TwoCapabilities => suite::keep_capabilities(&[Bpf, Perfmon])?,
        Place::WithoutCapBpf => suite::keep_capabilities(&[Perfmon])?,
        Place::LowMemlock => {
            suite::limit_memlock(64 << 10)?;
            suite::keep_capabilities(&[Bpf, Perfmon])?;
        }
        Place::WithoutBtf => suite::hide_directory("/sys/kernel/btf")?,
        Place::PidNamespace => {
            return suite::in_pid_namespace(true, || report(CpuProbe::builder().load()));
        }
        Place::PidNamespaceForeignProc => {
            let parent = std::os::unix::process::parent_id();
            return suite::in_pid_namespace(false, || report_of(parent));
        }
    }
    report(CpuProbe::builder().load());
    Ok(())
}

fn proportional(pid: u32, start_time_ns: u64) -> String {
    match ProportionalMemory::of(ProcessId { pid, start_time_ns }) {
        Ok(memory) => memory.resident_bytes.to_string(),
        Err(error) => format!("{:?} {error}", error.kind()),
    }
}

/// `RESIDENT SOURCE METRIC...` of another process by the memory probe.
fn report_of(pid: u32) {
    let mut probe = MemProbe::builder().load().expect("the caller is root");
    let snapshot = probe.snapshot().expect("snapshot of a loaded probe");
    let row = snapshot.process(pid).expect("/proc shows it");
    let sources: Vec<_> = snapshot.provenance.sources.iter().map(|it| &*it.metric).collect();
    let resident = row.usage.resident_bytes.expect("it has memory");
    tell(&format!("{resident} {:?} {sources:?}", row.usage.source)).expect("the test reads");
}

/// `ok ROWS DEGRADED` or `KIND TEXT`
fn report(probe: ebpfmetrics::Result<CpuProbe>) {
    let line = match probe {
        Ok(mut probe) => {
            spin_for(Duration::from_millis(30));
            let health = probe.health().expect("health of a loaded probe");
            let degraded: Vec<_> = health.degraded.iter().map(|d| &*d.feature).collect();
            let snapshot = probe.snapshot().expect("snapshot of a loaded probe");
            let me = snapshot.processes.iter().find(|p| p.info.namespace_pid == std::process::id());
            let me_ms = me.map_or(0, |me| me.usage.cpu_time.as_millis());
            format!("ok rows={} me_ms={me_ms} degraded={degraded:?}", snapshot.processes.len())
        }
        Err(error) => format!("{:?} {error}", error.kind()),
    };
    tell(&line).expect("the test reads");
}
