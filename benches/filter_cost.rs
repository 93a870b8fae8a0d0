//! Cost of probes with a filter that selects few of many processes: per snapshot, per run
//! of their programs, and for a process outside the filter that starts and ends.
#![expect(clippy::print_stdout, reason = "a bench prints its results")]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use ebpfmetrics::{
    Cgroups, CpuProbe, DiskProbe, Filter, Kernel, MemProbe, Probe as _, ProbeSet, SlabProbe,
    cpu::CpuAccounting, process::CgroupHierarchy,
};
use support::{Helper, Quartiles, Role, Statistics, process_cpu_ns, role, serve, swarm::sleeper};

const ROUNDS: usize = 11;
const PROCESSES: usize = 2_000;
/// Processes in the filter, with the one that started the others.
const FEW: usize = 10;
const STARTS: usize = 100;
const SNAPSHOTS: usize = 5;

fn main() -> Result<()> {
    match role() {
        Role::Bench => bench(),
        Role::Helper(work) if work == "sleepers" => sleepers(),
        Role::Helper(_) => starts(),
        Role::None => Ok(()),
    }
}

/// What was found with a filter.
#[derive(Default)]
struct Found {
    snapshot_ms: Vec<f64>,
    start_us: Vec<f64>,
    /// ns per run in each round, by program.
    programs: BTreeMap<String, Vec<f64>>,
    /// us of the programs that run once in the life of a process.
    programs_of_a_life: Vec<f64>,
}

fn bench() -> Result<()> {
    let _statistics = Statistics::enable()?;
    let cgroup = Cgroup::new()?;
    let (mut many, mut few) = (Helper::start("sleepers")?, Helper::start("sleepers")?);
    cgroup.hold(few.pid())?; // and what it starts
    let [_] = many.ask::<usize, 1>(PROCESSES - FEW)?;
    let [_] = few.ask::<usize, 1>(FEW - 1)?;
    let mut starter = Helper::start("starts")?;
    let kernel = Kernel::read()?;
    let filters = [
        ("no probe", None),
        ("all", Some(Filter::All)),
        ("a tree of 10", Some(Filter::tree(few.pid()))),
        ("a cgroup of 10", Some(Filter::cgroup(cgroup.id()?))),
        ("one process", Some(Filter::processes([few.pid()]))),
    ];
    let mut found: Vec<Found> = filters.iter().map(|_| Found::default()).collect();
    for round in 0..=ROUNDS {
        for ((name, filter), found) in filters.iter().zip(&mut found) {
            let mut now = Found::default();
            measure(&kernel, &cgroup.hierarchy, filter.as_ref(), &mut starter, &mut now)
                .with_context(|| format!("filter: {name}"))?;
            if round > 0 {
                found.snapshot_ms.append(&mut now.snapshot_ms);
                found.start_us.append(&mut now.start_us);
                found.programs_of_a_life.append(&mut now.programs_of_a_life);
                for (program, mut ns) in now.programs {
                    found.programs.entry(program).or_default().append(&mut ns);
                }
            }
        }
    }
    drop((many, few));

    println!("medians (quartiles) of {ROUNDS} rounds in turns, {PROCESSES} processes more");
    println!(
        "\nCPU time per snapshot of CpuProbe and MemProbe in a set; fork, exec, exit and wait"
    );
    println!("of a process outside the filter, and the programs at its start and end, of all four");
    for ((name, _), found) in filters.iter().zip(&found) {
        let of = |values: &[f64]| match values {
            [] => format!("{:>24}", ""),
            values => format!("{:24.2}", Quartiles::of(values.iter().copied())),
        };
        println!(
            "  {name:16} {} ms {} us {} us",
            of(&found.snapshot_ms),
            of(&found.start_us),
            of(&found.programs_of_a_life)
        );
    }
    println!("\nns per run, the statistics' own cost included");
    print!("  {:24}", "");
    filters[1..].iter().for_each(|(name, _)| print!("{name:>24}"));
    println!();
    for program in found[1].programs.keys() {
        print!("  {program:24}");
        for found in &found[1..] {
            let values = found.programs.get(program).cloned().unwrap_or_default();
            if values.is_empty() {
                print!("{:>24}", "");
            } else {
                print!("{:24.0}", Quartiles::of(values));
            }
        }
        println!();
    }
    Ok(())
}

fn measure(
    kernel: &Kernel,
    hierarchy: &CgroupHierarchy,
    filter: Option<&Filter>,
    starter: &mut Helper,
    found: &mut Found,
) -> Result<()> {
    let Some(filter) = filter else {
        let [us] = starter.ask::<f64, 1>(STARTS)?;
        found.start_us.push(us);
        return Ok(());
    };
    let set = ProbeSet::builder().filter(filter.clone()).cgroup_hierarchy(hierarchy.clone());
    let mut set = set.build_on(kernel)?;
    set.add_on(CpuProbe::builder().accounting(CpuAccounting::SchedSwitch), kernel)?;
    set.add_on(MemProbe::builder(), kernel)?;
    for _ in 0..SNAPSHOTS {
        let before = process_cpu_ns();
        let rows = set.snapshot()?.processes().len();
        found.snapshot_ms.push((process_cpu_ns() - before) as f64 / 1e6);
        let expected = match filter {
            Filter::All => PROCESSES..usize::MAX,
            Filter::Processes(_) => 1..2,
            _ => FEW..FEW + 1,
        };
        ensure!(expected.contains(&rows), "{rows} rows");
    }
    set.add_on(DiskProbe::builder(), kernel)?;
    set.add_on(SlabProbe::builder(), kernel)?;
    let before = set.cost()?;
    let [us] = starter.ask::<f64, 1>(STARTS)?;
    found.start_us.push(us);
    sleep(Duration::from_millis(200)); // for releases
    let mut per_life = 0.0;
    for (before, after) in before.programs.iter().zip(set.cost()?.programs) {
        let runs = after.run_count - before.run_count;
        let ns = (after.run_time - before.run_time).as_nanos() as f64;
        // what the machine does beside is in here too, where it is busy
        if runs >= STARTS as u64 / 2 {
            found.programs.entry(after.program.to_string()).or_default().push(ns / runs as f64);
            // Each runs once in the life of a process. A dispatcher's time has its handler's.
            if after.program.starts_with("process_on_") {
                per_life += ns / runs as f64 / 1e3;
            }
        }
        // walks are not part of a start
        if after.program.starts_with("process_walk") {
            let walks = before.run_time.as_nanos() as f64 / before.run_count.max(1) as f64;
            found.programs.entry(after.program.into_owned()).or_default().push(walks);
        }
    }
    found.programs_of_a_life.push(per_life);
    Ok(())
}

/// Keeps as many sleeping children as asked for.
fn sleepers() -> Result<()> {
    let mut children = Vec::new();
    serve(|wanted| {
        while children.len() < wanted {
            children.push(sleeper()?);
        }
        Ok(children.len().to_string())
    })
}

/// Starts so many processes one after another, and answers with the CPU time of each.
fn starts() -> Result<()> {
    serve(|count| {
        let before = process_cpu_ns() + children_cpu_ns();
        for _ in 0..count {
            Command::new("/bin/true").stdout(Stdio::null()).status()?;
        }
        let used_ns = process_cpu_ns() + children_cpu_ns() - before;
        Ok((used_ns as f64 / count as f64 / 1e3).to_string())
    })
}

#[expect(unsafe_code, reason = "rustix has no getrusage()")]
fn children_cpu_ns() -> u64 {
    // SAFETY: getrusage fills in what it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let ns = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
    ns(usage.ru_utime) + ns(usage.ru_stime)
}

/// In whatever hierarchy is mounted. Removed when dropped, once its processes are gone.
struct Cgroup {
    directory: PathBuf,
    hierarchy: CgroupHierarchy,
}

impl Cgroup {
    fn new() -> Result<Self> {
        let hierarchy = CgroupHierarchy::mounted();
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let is_it = |fields: &Vec<&str>| match &hierarchy {
            CgroupHierarchy::Controller(name) => {
                fields[2] == "cgroup" && fields[3].split(',').any(|option| option == name)
            }
            _ => fields[2] == "cgroup2",
        };
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = mounts.find(is_it).context("no cgroups are mounted")?;
        let name = format!("ebpfmetrics-bench-{}", std::process::id());
        let directory = PathBuf::from(mount[1]).join(name);
        fs::create_dir(&directory)?;
        Ok(Self { directory, hierarchy })
    }

    fn hold(&self, pid: u32) -> Result<()> {
        Ok(fs::write(self.directory.join("cgroup.procs"), pid.to_string())?)
    }

    fn id(&self) -> Result<u64> {
        let path = PathBuf::from("/").join(self.directory.file_name().context("it has one")?);
        Cgroups::of(&self.hierarchy).id(path).context("it was just made")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            sleep(Duration::from_millis(50));
        }
    }
}
