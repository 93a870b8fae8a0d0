//! What the tests measure: processes whose work is known.
//!
//! Each writes a line to standard output once it is under way and dies with the
//! thread that started it, so that no test can leave one behind.

use std::{
    io::{self, BufRead as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{net::UnixDatagram, process::CommandExt as _},
    },
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Error};
use clap::Parser;
use ebpfmetrics::{CpuAccounting, CpuProbe, Probe as _};
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
    /// Executes itself as `work-after`, on a line of input, and spins.
    Exec,
    /// Ends its first thread while another goes on to spin.
    LeaderExits,
    /// Opens and closes, as lines of input say: `pipes N`, `threads N` (four threads,
    /// N pipes each), `sockets N`, `hold N` (pipes) and `drop` (those held). Tells
    /// when it is done, and the threads that it took for it.
    Slab,
    /// So many datagrams, on a line of input, to a process of its own that receives
    /// them; tells the pid of that, and when all have arrived.
    Send { count: u32 },
    /// The process that receives, on its standard input.
    Receive { count: u32 },
    /// Loads a CPU probe, tells, and answers each pid with its CPU time in ns.
    HoldProbe,
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
}

fn main() -> anyhow::Result<()> {
    suite::die_with_parent();
    match Work::parse() {
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
            let mut used_ns = 0;
            for _ in 0..count {
                used_ns += suite::fork_and_wait(None, || spin_for(spin))?.1;
            }
            tell(&used_ns.to_string())?;
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
            let (pid, first_ns) = suite::fork_and_wait(None, work(first_ms))?;
            let (again, second_ns) = suite::fork_and_wait(Some(pid), work(second_ms))?;
            anyhow::ensure!(pid == again, "asked for pid {pid}, got {again}");
            tell(&format!("{pid} {first_ns} {second_ns}"))?;
            loop {
                thread::park();
            }
        }
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
        Work::LeaderExits => {
            thread::spawn(|| {
                thread::sleep(Duration::from_millis(50));
                tell("leader gone").expect("the test reads");
                spin()
            });
            suite::exit_thread()
        }
        Work::Slab => slab(),
        Work::Send { count } => {
            let (ours, theirs) = UnixDatagram::pair()?;
            let mut receiver = Command::new(std::env::current_exe()?)
                .args(["receive", &count.to_string()])
                .stdin(OwnedFd::from(theirs))
                .stdout(Stdio::piped())
                .spawn()?;
            let mut told = io::BufReader::new(receiver.stdout.take().context("no output")?).lines();
            let mut arrived = || told.next().context("the receiver is gone")?.map_err(Error::from);
            arrived()?;
            tell(&receiver.id().to_string())?;
            for _ in io::stdin().lines() {
                for _ in 0..count {
                    ours.send(&[7; 100])?;
                }
                tell(&arrived()?)?;
            }
            Ok(receiver.kill()?)
        }
        Work::Receive { count } => {
            let socket = UnixDatagram::from(io::stdin().as_fd().try_clone_to_owned()?);
            tell("receiving")?;
            loop {
                for _ in 0..count {
                    socket.recv(&mut [0; 200])?;
                }
                tell("arrived")?;
            }
        }
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
        Work::Load { place } => load(place),
    }
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

fn slab() -> anyhow::Result<()> {
    let mut held = Vec::with_capacity(10_000);
    tell("ready")?;
    for line in io::stdin().lines() {
        let line = line?;
        let (what, count) = line.split_once(' ').unwrap_or((&line, "1"));
        let count: usize = count.parse()?;
        let mut done = "done".to_owned();
        match what {
            "pipes" => pipes(count)?,
            "threads" => {
                let pipes = move || pipes(count).map(|()| rustix::thread::gettid());
                for thread in [(); 4].map(|()| thread::spawn(pipes)) {
                    let tid = thread.join().expect("opening does not panic")?;
                    done.push_str(&format!(" {}", tid.as_raw_nonzero()));
                }
            }
            "sockets" => (0..count).try_for_each(|_| UnixDatagram::pair().map(drop))?,
            "hold" => (0..count).try_for_each(|_| io::pipe().map(|pipe| held.push(pipe)))?,
            "drop" => held.clear(),
            other => anyhow::bail!("{other}?"),
        }
        tell(&done)?;
    }
    Ok(())
}

fn pipes(count: usize) -> io::Result<()> {
    (0..count).try_for_each(|_| io::pipe().map(drop))
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
            return suite::in_pid_namespace(|| report(CpuProbe::builder().load()));
        }
    }
    report(CpuProbe::builder().load());
    Ok(())
}

/// `ok ROWS DEGRADED` or `KIND TEXT`
fn report(probe: ebpfmetrics::Result<CpuProbe>) {
    let line = match probe {
        Ok(mut probe) => {
            spin_for(Duration::from_millis(30));
            let health = probe.health().expect("health of a loaded probe");
            let degraded: Vec<_> = health.degraded.iter().map(|d| d.feature).collect();
            let snapshot = probe.snapshot().expect("snapshot of a loaded probe");
            let me = snapshot.processes.iter().find(|p| p.info.namespace_pid == std::process::id());
            let me_ms = me.map_or(0, |me| me.usage.cpu_time.as_millis());
            format!("ok rows={} me_ms={me_ms} degraded={degraded:?}", snapshot.processes.len())
        }
        Err(error) => format!("{:?} {error}", error.kind()),
    };
    tell(&line).expect("the test reads");
}
