//! Several probes read as one: as a tuple, and as a set that is chosen at run time.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread::sleep,
    time::Duration,
};

use ebpfmetrics::{
    AnyProbe, Cost, CpuProbe, CpuProcess, CpuSnapshot, DiskProbe, DiskProcess, DiskSnapshot, Error,
    ErrorKind, Health, Join, Joined, JoinedSnapshot, Kernel, MemProbe, MemProcess, MemSnapshot,
    Probe, Requirements, Result, Snapshot as _, Statistics, Window,
    kit::{Object, Read, TaskProbe, Walk, read_alone},
};
use ebpfmetrics_suite::{MemStatus, Workload, schedstat};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

fn probes() -> (CpuProbe, MemProbe) {
    let kernel = Kernel::read().unwrap();
    let cpu = CpuProbe::builder().load_on(&kernel).unwrap();
    (cpu, MemProbe::builder().load_on(&kernel).unwrap())
}

/// A snapshot, and how often each iterator was run for it.
fn with_runs<J: Join>(
    joined: &mut Joined<J>,
) -> (JoinedSnapshot<J::Snapshots>, Vec<(String, u64)>) {
    let runs = |joined: &Joined<J>| {
        let programs = joined.cost().unwrap().programs.into_iter();
        let iterators = programs.filter(|it| it.program.contains("_tasks"));
        iterators.map(|it| (it.program, it.run_count)).collect::<Vec<_>>()
    };
    let before = runs(joined);
    let snapshot = joined.snapshot().unwrap();
    let grown =
        runs(joined).into_iter().zip(before).map(|((name, now), (_, then))| (name, now - then));
    (snapshot, grown.collect())
}

#[test]
fn one_walk_serves_all_and_each_figure_is_right() {
    let statistics = Statistics::enable().unwrap();
    let mut joined = Joined::new(probes()).unwrap();
    let work = Workload::start(WORKLOAD, &["spin", "3"]);
    sleep(Duration::from_millis(300));
    work.stop();
    let (snapshot, runs) = with_runs(&mut joined);
    drop(statistics);

    // A program that is called by another's tail is not counted as a run of its own.
    assert!(runs[0].0 == "cpu_tasks" && runs[0].1 > 10, "{runs:?}");
    assert!(runs[1].0.starts_with("mem_tasks") && runs[1].1 == 0, "{runs:?}");

    let (cpu, mem) = &snapshot.parts;
    assert_eq!((cpu.window, mem.window), (snapshot.window, snapshot.window));
    let row = snapshot.processes().find(|row| row.id.pid == work.pid()).unwrap();
    let (of_cpu, of_mem) = (row.rows.0.unwrap(), row.rows.1.unwrap());
    assert_eq!(
        of_cpu.usage.cpu_time.as_nanos() as u64,
        schedstat(work.pid()).unwrap().cpu_ns,
        "{of_cpu:?}"
    );
    let status = MemStatus::of(work.pid()).unwrap();
    assert_eq!(of_mem.usage.virtual_bytes, Some(status.size));
    assert_eq!((of_cpu.id, of_cpu.info), (of_mem.id, of_mem.info));
    assert_eq!(row.info.comm, "workload");
}

#[test]
fn the_join_has_every_process_of_every_probe_once() {
    let mut joined = Joined::new(probes()).unwrap();
    let mut children = Workload::start(WORKLOAD, &["children", "100", "50"]);
    children.line();
    sleep(Duration::from_millis(200));
    let snapshot = joined.reset().unwrap();
    let ids: Vec<_> = snapshot.processes().map(|row| row.id).collect();
    assert!(ids.is_sorted() && ids.windows(2).all(|pair| pair[0] != pair[1]));
    let (cpu, mem) = &snapshot.parts;
    let all: BTreeSet<_> = (cpu.processes.iter().map(|row| row.id))
        .chain(mem.processes.iter().map(|row| row.id))
        .collect();
    assert_eq!(ids, all.into_iter().collect::<Vec<_>>());
    assert!(snapshot.losses().get("exit_record_missing").is_some());
    assert!(snapshot.losses().get("track_table_full").is_some());
}

#[test]
fn parted_probes_go_on_by_themselves() {
    let mut joined = Joined::new(probes()).unwrap();
    let end = joined.reset().unwrap().window.end_ns;
    let (mut cpu, mut mem) = joined.into_inner();
    let (of_cpu, of_mem) = (cpu.snapshot().unwrap(), mem.snapshot().unwrap());
    assert_eq!((of_cpu.window.start_ns, of_mem.window.start_ns), (end, end));
    let me = std::process::id();
    assert!(of_cpu.process(me).is_some() && of_mem.process(me).is_some());
    drop(mem);
    assert!(cpu.snapshot().unwrap().process(me).is_some());
    // two of a kind, and the other way round
    let mut twins = Joined::new((MemProbe::builder().load().unwrap(), cpu)).unwrap();
    let snapshot = twins.snapshot().unwrap();
    let row = snapshot.processes().find(|row| row.id.pid == me).unwrap();
    assert!(row.rows.0.is_some() && row.rows.1.is_some());
}

/// Three probes whose types the program has forgotten.
fn set() -> Vec<AnyProbe> {
    let kernel = Kernel::read().unwrap();
    vec![
        AnyProbe::new(CpuProbe::builder().load_on(&kernel).unwrap()),
        AnyProbe::new(MemProbe::builder().load_on(&kernel).unwrap()),
        AnyProbe::new(DiskProbe::builder().load_on(&kernel).unwrap()),
    ]
}

#[test]
fn a_set_is_read_in_one_walk_and_each_figure_is_right() {
    let statistics = Statistics::enable().unwrap();
    let mut joined = Joined::new(set()).unwrap();
    let names: Vec<_> = joined.probes().iter().map(AnyProbe::name).collect();
    assert_eq!(names, ["cpu", "mem", "disk"]);
    let work = Workload::start(WORKLOAD, &["spin", "3"]);
    sleep(Duration::from_millis(300));
    work.stop();
    let (snapshot, runs) = with_runs(&mut joined);
    drop(statistics);
    let of = |name| runs.iter().find(|(it, _)| it.starts_with(name)).unwrap().1;
    assert_eq!((of("mem_tasks"), of("disk_tasks")), (0, 0), "{runs:?}");
    assert!(of("cpu_tasks") > 10, "{runs:?}");

    let (cpu, mem) =
        (snapshot.part::<CpuSnapshot>().unwrap(), snapshot.part::<MemSnapshot>().unwrap());
    let disk = snapshot.parts[2].downcast_ref::<DiskSnapshot>().unwrap();
    assert!(snapshot.parts[2].downcast_ref::<CpuSnapshot>().is_none());
    assert_eq!([cpu.window, mem.window, disk.window], [snapshot.window; 3]);

    assert!(snapshot.parts.iter().map(|part| part.name()).eq(names));

    let row = snapshot.processes().find(|row| row.id.pid == work.pid()).unwrap();
    let of_cpu = row.rows.get::<CpuProcess>().unwrap();
    let of_mem = row.rows.get::<MemProcess>().unwrap();
    let of_disk = row.rows.of(2).unwrap().downcast_ref::<DiskProcess>().unwrap();
    assert_eq!([of_cpu.id, of_mem.id, of_disk.id], [row.id; 3]);
    assert!(row.rows.of(3).is_none() && row.rows.get::<ebpfmetrics::SlabProcess>().is_none());
    let truth = schedstat(work.pid()).unwrap().cpu_ns;
    assert_eq!(of_cpu.usage.cpu_time.as_nanos() as u64, truth);
    assert_eq!(of_mem.usage.virtual_bytes, Some(MemStatus::of(work.pid()).unwrap().size));
    assert_eq!(row.info, &of_cpu.info);

    // every process of every probe, once
    let ids: Vec<_> = snapshot.processes().map(|row| row.id).collect();
    let all: BTreeSet<_> = (cpu.processes.iter().map(|row| row.id))
        .chain(mem.processes.iter().map(|row| row.id))
        .chain(disk.processes.iter().map(|row| row.id))
        .collect();
    assert_eq!(ids, all.into_iter().collect::<Vec<_>>());

    // losses, sources, programs and memory of all of them
    for cause in ["exit_state_full", "track_table_full", "row_table_full"] {
        assert!(snapshot.losses().get(cause).is_some(), "{cause} in {:?}", snapshot.losses);
    }
    for metric in ["cpu_time", "resident_bytes", "busy"] {
        assert!(snapshot.provenance.sources.iter().any(|source| source.metric == metric));
    }
    let parts: Vec<_> = {
        let programs = joined.cost().unwrap().programs.into_iter();
        programs.map(|it| it.program.split('_').next().unwrap().to_owned()).collect()
    };
    let health = joined.health().unwrap();
    assert_eq!(health.programs, parts.len());
    assert_eq!(parts.into_iter().collect::<BTreeSet<_>>().len(), 3);
    assert!(health.map_bytes > 0);
    // what a program of threads and closures needs
    fn moves<T: Send + 'static>(_: T) {}
    moves(joined);
}

#[test]
fn a_set_has_intervals_and_gives_its_probes_back() {
    let mut intervals = Joined::new(set()).unwrap().intervals(Duration::from_millis(50));
    let mut end = intervals.next().unwrap().unwrap().snapshot.window.end_ns;
    for _ in 0..3 {
        let snapshot = intervals.next().unwrap().unwrap().snapshot;
        assert_eq!(snapshot.window.start_ns, end);
        assert!(snapshot.parts.iter().all(|part| part.window() == snapshot.window));
        end = snapshot.window.end_ns;
    }
    let mut probes = intervals.into_inner().into_inner();
    assert!(probes[1].downcast_ref::<MemProbe>().is_some());
    let first = probes.remove(0).downcast::<MemProbe>().unwrap_err();
    let mut cpu: CpuProbe = first.downcast().unwrap();
    let alone = cpu.snapshot().unwrap();
    assert_eq!(alone.window.start_ns, end);
    assert!(alone.process(std::process::id()).is_some());
    // those that are left, with another: the set changes at run time
    probes.push(AnyProbe::new(cpu));
    let snapshot = Joined::new(probes).unwrap().reset().unwrap();
    let row = snapshot.processes().find(|row| row.id.pid == std::process::id()).unwrap();
    assert!((0..3).all(|probe| row.rows.of(probe).is_some()));
}

#[test]
fn a_set_of_none_has_windows_alone() {
    let mut joined = Joined::new(Vec::new()).unwrap();
    let first = joined.reset().unwrap();
    let second = joined.snapshot().unwrap();
    assert_eq!(second.window.start_ns, first.window.end_ns);
    assert_eq!((second.processes().count(), second.losses.total()), (0, 0));
    assert_eq!(joined.health().unwrap().programs, 0);
}

#[test]
fn as_many_as_the_kernel_hands_on_to_and_no_more() {
    let kernel = Kernel::read().unwrap();
    let load = |count| -> Vec<_> {
        let load = |_| AnyProbe::new(CpuProbe::builder().load_on(&kernel).unwrap());
        (0..count).map(load).collect()
    };
    let mut joined = Joined::new(load(33)).unwrap();
    let snapshot = joined.snapshot().unwrap();
    let count = |part: &ebpfmetrics::AnySnapshot| {
        let snapshot = part.downcast_ref::<CpuSnapshot>().unwrap();
        snapshot.processes.iter().filter(|process| !process.info.exited).count()
    };
    let counts: Vec<_> = snapshot.parts.iter().map(count).collect();
    assert!(counts.len() == 33 && counts[32] > 5, "{counts:?}");
    // each looks at a process at the same moment, but for those that end meanwhile
    assert!(counts.iter().all(|count| count.abs_diff(counts[0]) < 10), "{counts:?}");
    let row = snapshot.processes().find(|row| row.id.pid == std::process::id()).unwrap();
    assert!((0..33).all(|probe| row.rows.of(probe).is_some()));
    drop(joined);
    let error = Joined::new(load(34)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert!(error.to_string().contains("33"), "{error}");
}

const BEFORE_WALK: u8 = 1;
const AFTER_WALK: u8 = 2;

/// A probe by somebody else, whose reads fail where and when it is told.
struct Failing {
    probe: CpuProbe,
    at: Arc<AtomicU8>,
}

impl Failing {
    fn new(kernel: &Kernel) -> (Self, Arc<AtomicU8>) {
        let (probe, at) = (CpuProbe::builder().load_on(kernel).unwrap(), Arc::default());
        (Self { probe, at: Arc::clone(&at) }, at)
    }

    fn pass(&self, here: u8) -> Result<()> {
        match self.at.load(Ordering::Relaxed) == here {
            true => Err(Error::new(ErrorKind::System, "on purpose")),
            false => Ok(()),
        }
    }
}

impl Probe for Failing {
    type Snapshot = CpuSnapshot;

    const NAME: &'static str = "failing";

    fn requirements() -> Requirements {
        CpuProbe::requirements()
    }

    fn snapshot(&mut self) -> Result<CpuSnapshot> {
        read_alone(self, Read::Snapshot)
    }

    fn reset(&mut self) -> Result<CpuSnapshot> {
        read_alone(self, Read::Reset)
    }

    fn health(&self) -> Result<Health> {
        self.probe.health()
    }

    fn cost(&self) -> Result<Cost> {
        self.probe.cost()
    }
}

impl TaskProbe for Failing {
    fn iterator(&self) -> &'static str {
        self.probe.iterator()
    }

    fn object(&self) -> &Object {
        self.probe.object()
    }

    fn object_mut(&mut self) -> &mut Object {
        self.probe.object_mut()
    }

    fn before_walk(&mut self, read: Read) -> Result<()> {
        self.pass(BEFORE_WALK)?;
        self.probe.before_walk(read)
    }

    fn after_walk(&mut self, walk: &Walk<'_>) -> Result<CpuSnapshot> {
        self.pass(AFTER_WALK)?;
        self.probe.after_walk(walk)
    }

    fn end_window(&mut self) {
        self.probe.end_window();
    }
}

/// The windows of all probes go on where one of them fails, and nothing of them is lost.
fn fails_together<J: Join>(
    probes: J,
    at: &AtomicU8,
    parts: impl Fn(&JoinedSnapshot<J::Snapshots>) -> (&CpuSnapshot, &MemSnapshot, Window),
) {
    const SPIKE_KIB: u64 = 8 << 10;
    let mut joined = Joined::new(probes).unwrap();
    let mut start = joined.reset().unwrap().window.end_ns;
    for places in [[BEFORE_WALK, AFTER_WALK], [AFTER_WALK, BEFORE_WALK]] {
        let work = Workload::start(WORKLOAD, &["spin", "1"]);
        let mut memory = Workload::start(WORKLOAD, &["memory"]);
        let faults = |memory: &mut Workload| -> u64 {
            memory.ask("faults").split_whitespace().next().unwrap().parse().unwrap()
        };
        memory.ask(&format!("spike {SPIKE_KIB} 20"));
        for place in places {
            at.store(place, Ordering::Relaxed);
            let error = joined.reset().err().expect("a reset that fails");
            assert!(error.to_string().contains("on purpose"), "{error}");
            // smaller, in what the kernel side takes for the next window
            memory.ask("spike 1000 1");
        }
        at.store(0, Ordering::Relaxed);
        work.stop();
        let truth = faults(&mut memory);
        let so_far = joined.snapshot().unwrap();
        let snapshot = joined.reset().unwrap();
        for snapshot in [&so_far, &snapshot] {
            let (cpu, mem, of_failing) = parts(snapshot);
            let windows = [cpu.window, mem.window, of_failing];
            assert_eq!(windows.map(|window| window.start_ns), [start; 3], "{places:?}");
            assert_eq!(windows, [snapshot.window; 3]);
            // both began in the window: all that they ever did is in it
            let cpu_time = cpu.process(work.pid()).unwrap().usage.cpu_time;
            assert_eq!(cpu_time.as_nanos() as u64, schedstat(work.pid()).unwrap().cpu_ns);
            let usage = mem.process(memory.pid()).unwrap().usage;
            let peak = usage.resident_peak_bytes.unwrap();
            assert!(peak >= SPIKE_KIB << 10, "{places:?}: {peak}");
        }
        let usage = parts(&snapshot).1.process(memory.pid()).unwrap().usage;
        assert_eq!(usage.minor_faults, truth);
        start = snapshot.window.end_ns;
        // the next window has nothing of it
        let next = joined.snapshot().unwrap();
        let (cpu, mem, of_failing) = parts(&next);
        assert_eq!([cpu.window.start_ns, of_failing.start_ns], [start; 2]);
        assert_eq!(cpu.process(work.pid()).unwrap().usage.cpu_time, Duration::ZERO);
        let peak = mem.process(memory.pid()).unwrap().usage.resident_peak_bytes.unwrap();
        assert!(peak < SPIKE_KIB << 10, "{places:?}: {peak} in the next window");
    }
}

#[test]
fn a_reset_that_fails_ends_the_window_of_no_probe() {
    let kernel = Kernel::read().unwrap();
    let (cpu, memory) = probes();
    let (failing, at) = Failing::new(&kernel);
    fails_together((cpu, memory, failing), &at, |snapshot| {
        let (cpu, memory, failing) = &snapshot.parts;
        (cpu, memory, failing.window)
    });
    let (cpu, memory) = probes();
    let (failing, at) = Failing::new(&kernel);
    fails_together((failing, memory, cpu), &at, |snapshot| {
        let (failing, memory, cpu) = &snapshot.parts;
        (cpu, memory, failing.window)
    });
    let (cpu, memory) = probes();
    let (failing, at) = Failing::new(&kernel);
    let set = vec![AnyProbe::new(cpu), AnyProbe::new(memory), AnyProbe::new(failing)];
    fails_together(set, &at, |snapshot| {
        let (cpu, memory) = (snapshot.part().unwrap(), snapshot.part().unwrap());
        (cpu, memory, snapshot.parts[2].window())
    });
}

#[test]
fn a_failed_reset_of_one_probe_alone_goes_on_too() {
    let (mut probe, at) = Failing::new(&Kernel::read().unwrap());
    let start = probe.reset().unwrap().window.end_ns;
    for place in [BEFORE_WALK, AFTER_WALK] {
        at.store(place, Ordering::Relaxed);
        assert!(probe.reset().is_err());
        at.store(0, Ordering::Relaxed);
        assert_eq!(probe.snapshot().unwrap().window.start_ns, start);
    }
}
