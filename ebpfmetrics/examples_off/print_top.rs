//! What every process does with CPUs, memory and disks, as a live table like that of
//! `top`, or as one line of JSON per interval.
//!
//! ```text
//! cargo run --release --example print_top -- --interval 500ms --sort wait
//! cargo run --release --example print_top -- --sort mem --limit 20
//! cargo run --release --example print_top -- --json --count 3
//! cargo run --release --example print_top -- --cgroup
//! cargo run --release --example print_top -- --watch -- make -j4
//! ```
//!
//! It needs `CAP_BPF` and `CAP_PERFMON`, or root; without, it says what is missing
//! and `--preflight` says it in full. Percentages are of one CPU unless they say
//! otherwise: 100 is one CPU busy. Memory is in MiB: what is resident now, and the most
//! that was in the interval; disks in MiB per second. Where the output is no terminal,
//! the tables follow one another, without colours.
//!
//! With `--watch` nothing but the command and what it starts is measured. What the command prints goes to standard error,
//! the tables follow one another and end with it; with a long interval there is one, of
//! all that it did.
//!
//! The exit code is that of a command, and else 0 after the last interval, on Ctrl-C and
//! when the reader of the output closes its pipe, 1 on an error and 2 on wrong arguments.

#[path = "print_top/screen.rs"]
mod screen;
#[path = "print_top/table.rs"]
mod table;

use std::{
    io::{self, IsTerminal, Write, stderr, stdout},
    os::unix::process::ExitStatusExt,
    process::{self, Child, Command, ExitCode, ExitStatus},
    thread,
};

use clap::{Parser, ValueEnum};
use crossbeam_channel::{Receiver, bounded, never, select, tick};
use ebpfmetrics::{
    CgroupHierarchy, CpuAccounting, CpuProbe, CpuSnapshot, Degraded, DiskProbe, DiskSnapshot,
    Joined, JoinedSnapshot, Kernel, MemProbe, MemSnapshot, Probe, ProcessId, ProcessTree, Watch,
    Window,
};

use screen::Screen;
use table::{header, table};

/// What the probes read in one interval.
type Interval = JoinedSnapshot<(CpuSnapshot, MemSnapshot, DiskSnapshot)>;

/// What every process does with CPUs, memory and disks, measured in the kernel.
#[derive(Parser)]
#[command(name = "print_top", version)]
struct Options {
    /// Time between two tables, such as 500ms or 2s.
    #[arg(long, default_value = "1s")]
    interval: humantime::Duration,
    /// Ends after that many intervals.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Ends after one interval.
    #[arg(long, conflicts_with = "count")]
    once: bool,
    /// What the table is sorted by: the pid upwards, all else downwards.
    #[arg(long, value_enum, default_value_t)]
    sort: Sort,
    /// Shows the first N rows; a live table never more than the terminal holds.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Shows this process only; may be given several times.
    #[arg(long, value_name = "PID")]
    pid: Vec<u32>,
    /// Shows this process and all that it starts, those that have exited too.
    #[arg(long, value_name = "PID", conflicts_with = "pid")]
    tree: Option<u32>,
    /// Measures a command alone, with all that it starts, until it ends.
    #[arg(long, requires = "command", conflicts_with_all = ["pid", "tree", "count", "once"])]
    watch: bool,
    /// The command, behind `--`.
    #[arg(last = true, requires = "watch")]
    command: Vec<String>,
    /// Shows cgroups instead of processes; of a controller's hierarchy where one is named,
    /// such as memory, of the one that is mounted else.
    #[arg(long, value_name = "CONTROLLER", num_args = 0..=1, require_equals = true)]
    #[arg(conflicts_with_all = ["threads", "json"])]
    cgroup: Option<Option<String>>,
    /// Shows threads, and processes that have exited.
    #[arg(long)]
    threads: bool,
    /// How the CPU time of processes is measured; that of threads is in the ledger.
    #[arg(long, value_enum, default_value_t)]
    accounting: Accounting,
    /// Prints a JSON object per interval and line: counters of the interval, gauges
    /// as at its end. --sort and --limit make no difference.
    #[arg(long)]
    json: bool,
    /// Tells whether this machine has what the probes need, and ends.
    #[arg(long)]
    preflight: bool,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Sort {
    #[default]
    Cpu,
    User,
    System,
    Wait,
    Switches,
    Mem,
    Disk,
    Pid,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Accounting {
    /// The scheduler's own books: no cost per context switch
    #[default]
    Ledger,
    /// Charged at every context switch
    SchedSwitch,
}

/// One line of JSON.
#[derive(serde::Serialize)]
struct Line<'a> {
    window: Window,
    cpu: &'a CpuSnapshot,
    mem: &'a MemSnapshot,
    disk: &'a DiskSnapshot,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let closed = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    match if options.preflight { preflight() } else { run(&options) } {
        Ok(code) => code,
        Err(error) if error.downcast_ref().is_some_and(closed) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "print_top: {error}");
            if error.is::<ebpfmetrics::Error>() {
                let _ = writeln!(io::stderr(), "print_top --preflight checks all that is needed");
            }
            ExitCode::FAILURE
        }
    }
}

fn preflight() -> anyhow::Result<ExitCode> {
    let preflight = ebpfmetrics::preflight();
    writeln!(stdout(), "{preflight}")?;
    Ok(preflight.require().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
}

fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let (stop, stopped) = bounded(1);
    ctrlc::set_handler(move || {
        if stop.try_send(()).is_err() {
            process::exit(130); // The second time: the first one waits for the output.
        }
    })?;
    let accounting = match options.accounting {
        Accounting::Ledger => CpuAccounting::Ledger,
        Accounting::SchedSwitch => CpuAccounting::SchedSwitch,
    };
    let mut kernel = Kernel::read()?;
    if let Some(Some(controller)) = &options.cgroup {
        kernel = kernel.with_cgroup_hierarchy(CgroupHierarchy::controller(controller))?;
    }
    // The command is a child of ours: it is watched from its very first moment.
    let watch = if options.watch { Watch::Tree(process::id()) } else { Watch::All };
    let cpu = CpuProbe::builder().accounting(accounting).threads(options.threads);
    let probes = (
        cpu.watch(watch.clone()).load_on(&kernel)?,
        MemProbe::builder().watch(watch.clone()).load_on(&kernel)?,
        DiskProbe::builder().watch(watch).load_on(&kernel)?,
    );
    let hierarchy = options.cgroup.as_ref().map(|_| kernel.cgroup_hierarchy().clone());
    drop(kernel);
    let mut probe = Joined::new(probes)?;
    let degraded = probe.health()?.degraded;
    let intervals = if options.once { 1 } else { options.count.unwrap_or(u64::MAX) };
    let live = intervals > 1 && !options.json && !options.watch && stdout().is_terminal();
    let mut screen = live.then(Screen::enter).transpose()?;
    let mut shown = Shown {
        options,
        tree: options.tree.map(ProcessTree::of),
        hierarchy,
        degraded: &degraded,
        screen: screen.as_mut(),
    };
    let ended = match options.command.split_first() {
        Some((program, arguments)) => {
            end_of(Command::new(program).args(arguments).stdout(stderr()).spawn()?)
        }
        None => never(),
    };
    let ticks = tick(options.interval.into());
    for _ in 0..intervals {
        select! {
            recv(ticks) -> _ => show(probe.reset()?, &mut shown)?,
            recv(ended) -> status => {
                show(probe.reset()?, &mut shown)?;
                return Ok(exit_code(status??));
            }
            // The terminal tells the command, too.
            recv(stopped) -> _ => if !options.watch { break },
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells when a child has ended, and how.
fn end_of(mut child: Child) -> Receiver<io::Result<ExitStatus>> {
    let (tell, told) = bounded(1);
    thread::spawn(move || tell.send(child.wait()));
    told
}

/// As a shell tells it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.unwrap_or(1) as u8)
}

/// How intervals are shown.
struct Shown<'a> {
    options: &'a Options,
    tree: Option<ProcessTree>,
    hierarchy: Option<CgroupHierarchy>,
    degraded: &'a [Degraded],
    screen: Option<&'a mut Screen>,
}

fn show(mut interval: Interval, shown: &mut Shown<'_>) -> anyhow::Result<()> {
    let Shown { options, tree, hierarchy, degraded, screen } = shown;
    // Of the machine, whatever is listed below it; or of a command, without ourselves.
    let of_machine = (!options.watch).then(|| header(&interval, degraded));
    if let Some(tree) = tree {
        tree.group(&interval.parts.0);
    }
    let shown = |id: ProcessId| match &*tree {
        Some(tree) => tree.contains(id),
        None if options.watch => id.pid != process::id(),
        None => options.pid.is_empty() || options.pid.contains(&id.pid),
    };
    let (cpu, mem, disk) = &mut interval.parts;
    cpu.processes.retain(|process| shown(process.id));
    cpu.threads.retain(|thread| shown(thread.process));
    mem.processes.retain(|process| shown(process.id));
    disk.processes.retain(|process| shown(process.id));
    if options.json {
        let line = Line { window: interval.window, cpu, mem, disk };
        writeln!(stdout(), "{}", serde_json::to_string(&line)?)?;
        return Ok(());
    }
    let header = of_machine.unwrap_or_else(|| header(&interval, degraded));
    let room = screen.as_ref().map_or(usize::MAX, |screen| screen.height());
    let limit = options.limit.unwrap_or(usize::MAX).min(room);
    let text = header + &table(&interval, options, hierarchy.as_ref(), limit);
    match screen {
        Some(screen) => screen.draw(&text)?,
        None => write!(stdout(), "{text}")?,
    }
    Ok(())
}
