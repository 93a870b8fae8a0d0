//! Shows what every process does with CPUs, memory and disks: as a live table like `top`, or
//! as one JSON object per interval.
//!
//! ```text
//! cargo run --release --example print_top -- --interval 500ms --sort wait
//! cargo run --release --example print_top -- --probes cpu,mem --sort rss --limit 20
//! cargo run --release --example print_top -- --forest --columns pid,s,cpu,time,rss,command
//! cargo run --release --example print_top -- --devices
//! cargo run --release --example print_top -- --json --count 3
//! cargo run --release --example print_top -- --watch -- make -j4
//! ```
//!
//! It needs `CAP_BPF` and `CAP_PERFMON`, or root. `--help` lists the columns with their units.
//! With `--cgroup`, RSS is a sum of resident sets: pages that several processes map count for each
//! of them. With `--watch` the output of the command and a line with its totals go to standard
//! error, and the exit code is that of the command.

#[path = "print_top/columns.rs"]
mod columns;
#[path = "print_top/job_summary.rs"]
mod job_summary;
#[path = "print_top/json.rs"]
mod json;
#[path = "print_top/rows.rs"]
mod rows;
#[path = "print_top/table.rs"]
mod table;
#[path = "print_top/view.rs"]
mod view;

use std::{
    io::{self, IsTerminal, Write, stderr, stdout},
    os::unix::process::ExitStatusExt,
    process::{self, Command, ExitCode},
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use crossbeam_channel::{bounded, select, tick};
use ebpfmetrics::{
    CpuProbe, DiskProbe, Filter, Job, Kernel, MemProbe, Probe, ProbeSet, ProbeSetBuilder, Snapshot,
    job::Need, kit::HandleOf, process::CgroupHierarchy,
};

use self::{columns::Column, rows::Row, view::View};

/// Shows what every process does with CPUs, memory and disks, measured in the kernel
#[derive(Parser)]
#[command(name = "print_top", version, after_help = columns::help())]
struct Options {
    /// Time between two tables, such as 500ms or 2s
    #[arg(long, default_value = "1s")]
    interval: humantime::Duration,
    /// Stop after N intervals
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Probes to load
    #[arg(long, value_enum, value_delimiter = ',', default_value = "cpu,mem,disk")]
    probes: Vec<Kind>,
    /// Sort by a column: its name without % and /s
    #[arg(long, value_name = "COLUMN", default_value = "cpu", value_parser = columns::parse)]
    sort: &'static Column<Row>,
    /// Show these columns, such as pid,cpu,rss,command
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', value_parser = columns::parse)]
    columns: Vec<&'static Column<Row>>,
    /// Show each process below its parent
    #[arg(long, conflicts_with = "cgroup")]
    forest: bool,
    /// Show block devices instead of processes
    #[arg(long, conflicts_with_all = ["cgroup", "columns", "forest", "sort", "limit"])]
    devices: bool,
    /// Show at most N rows
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Measure only this process; can be repeated
    #[arg(long, value_name = "PID")]
    pid: Vec<u32>,
    /// Measure only this process and its descendants
    #[arg(long, value_name = "PID", conflicts_with = "pid")]
    tree: Option<u32>,
    /// Run a command; measure it and everything it starts, until it ends
    #[arg(long, requires = "command", conflicts_with_all = ["pid", "tree", "count"])]
    watch: bool,
    /// The command to run
    #[arg(last = true, requires = "watch")]
    command: Vec<String>,
    /// Show cgroups; with cgroup v1, CONTROLLER selects the hierarchy
    #[arg(long, value_name = "CONTROLLER", num_args = 0..=1, require_equals = true)]
    cgroup: Option<Option<String>>,
    /// Print one line of JSON per interval
    #[arg(long, conflicts_with_all = ["cgroup", "columns", "devices", "forest", "sort", "limit"])]
    json: bool,
    /// Report what the probes need and whether this machine has it, and exit
    #[arg(long)]
    preflight: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Cpu,
    Mem,
    Disk,
}

/// Handles of the probes that are loaded.
#[derive(Clone, Copy)]
struct Handles {
    cpu: Option<HandleOf<ebpfmetrics::cpu::CpuProbeBuilder>>,
    mem: Option<HandleOf<ebpfmetrics::mem::MemProbeBuilder>>,
    disk: Option<HandleOf<ebpfmetrics::disk::DiskProbeBuilder>>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let closed = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    match run(&options) {
        Ok(code) => code,
        // such as `print_top | head`
        Err(error) if error.downcast_ref().is_some_and(closed) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(stderr(), "print_top: {error}");
            ExitCode::FAILURE
        }
    }
}

fn set(options: &Options) -> ProbeSetBuilder {
    let filter = match options.tree {
        Some(root) => Filter::tree(root),
        None if options.pid.is_empty() => Filter::All,
        None => Filter::processes(options.pid.iter().copied()),
    };
    let builder = ProbeSet::builder().filter(filter);
    match &options.cgroup {
        Some(Some(controller)) => builder.cgroup_hierarchy(CgroupHierarchy::controller(controller)),
        _ => builder,
    }
}

fn load(options: &Options) -> ebpfmetrics::Result<(ProbeSet, Handles)> {
    let kernel = Kernel::read()?;
    let mut set = set(options).build_on(&kernel)?;
    let wants = |kind| options.probes.contains(&kind);
    let handles = Handles {
        cpu: wants(Kind::Cpu).then(|| set.add_on(CpuProbe::builder(), &kernel)).transpose()?,
        mem: wants(Kind::Mem).then(|| set.add_on(MemProbe::builder(), &kernel)).transpose()?,
        disk: wants(Kind::Disk).then(|| set.add_on(DiskProbe::builder(), &kernel)).transpose()?,
    };
    set.reset()?; // the same window for all probes
    Ok((set, handles))
}

fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if options.preflight {
        let preflight = ebpfmetrics::preflight();
        writeln!(stdout(), "{preflight}")?;
        return Ok(preflight.require().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS));
    }
    if options.devices && !options.probes.contains(&Kind::Disk) {
        anyhow::bail!("--devices needs the disk probe: add disk to --probes");
    }
    let (stop, stopped) = bounded(1);
    ctrlc::set_handler(move || {
        if stop.try_send(()).is_err() {
            process::exit(130); // the second time: the first waits for the output
        }
    })?;
    if let Some((program, arguments)) = options.command.split_first() {
        return watch(options, Command::new(program).args(arguments));
    }
    let (mut set, handles) = load(options)?;
    let intervals = options.count.unwrap_or(u64::MAX);
    let live = intervals > 1 && !options.json && stdout().is_terminal();
    let mut view = View::new(options, handles, &set, live)?;
    let ticks = tick(options.interval.into());
    for _ in 0..intervals {
        select! {
            recv(ticks) -> _ => {
                let snapshot = set.reset()?;
                show(&snapshot, &set, options, &mut view)?;
            }
            recv(stopped) -> _ => break,
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(
    snapshot: &Snapshot,
    set: &ProbeSet,
    options: &Options,
    view: &mut View<'_>,
) -> anyhow::Result<()> {
    match options.json {
        true => json::print(snapshot),
        false => view.print(snapshot, set),
    }
}

/// Runs a command. It gets the signals that stop this program too.
fn watch(options: &Options, command: &mut Command) -> anyhow::Result<ExitCode> {
    /// For processes that the command leaves behind.
    const FINISH: Duration = Duration::from_secs(3);
    #[expect(unsafe_code, reason = "no safe wrapper among the dependencies")]
    // SAFETY: SIG_DFL is no function. No other thread depends on SIGCHLD.
    unsafe {
        // where it is ignored, as in some supervisors, the kernel discards the exit status
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
    let need = |kind| if options.probes.contains(&kind) { Need::Required } else { Need::Off };
    let job = Job::builder().cpu(need(Kind::Cpu)).mem(need(Kind::Mem)).disk(need(Kind::Disk));
    let mut job = job.set(set(options)).spawn(command.stdout(stderr()))?;
    let handles = Handles { cpu: job.cpu(), mem: job.mem(), disk: job.disk() };
    let mut view = View::new(options, handles, job.as_ref(), false)?;
    let mut next = Instant::now();
    loop {
        next += *options.interval;
        let has_ended = job.wait_timeout(next.saturating_duration_since(Instant::now()))?;
        let snapshot = job.reset()?;
        show(&snapshot, job.as_ref(), options, &mut view)?;
        if has_ended {
            break;
        }
    }
    let report = job.finish(FINISH)?;
    let status = report.exit_status;
    job_summary::print(&report)?;
    let code = status.and_then(|it| it.code().or(it.signal().map(|signal| 128 + signal)));
    Ok(ExitCode::from(code.unwrap_or(1) as u8))
}
