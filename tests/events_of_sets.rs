//! Events of the processes that a set measures, and their usage when an exit is reported.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use ebpfmetrics::{
    CpuProbe, CpuUsage, DiskProbe, Event, Events, Filter, Handle, MemProbe, Probe as _, ProbeSet,
    ProcessId, cpu::CpuSystem, events::EventsBuilder,
};
use ebpfmetrics_suite::{QuietVolume, Workload, emulated, settle, support};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const MIB: u64 = 1 << 20;
/// Releases come an RCU grace period after the end.
const LATE: Duration = Duration::from_secs(8);

fn all() -> EventsBuilder {
    Events::builder().started(true).executed(true).exited(true).oom_kills(true)
}

/// A machine that hides process 1 from eBPF also hides what an idle CPU does on its address
/// space, such as releases.
fn hides_events() -> bool {
    let degraded = CpuProbe::builder().load().unwrap().health().unwrap().degraded;
    degraded.iter().any(|it| it.feature == "process 1")
}

fn keep_cpus_busy(hides: bool) -> Option<Workload> {
    hides.then(|| Workload::start(WORKLOAD, &["spin", "2"]))
}

/// Takes events until the wanted one comes, or until it is late.
fn until(
    events: &mut Events,
    seen: &mut Vec<Event>,
    wanted: impl Fn(&Event) -> bool,
) -> Option<Event> {
    let start = Instant::now();
    while start.elapsed() < LATE {
        events.wait(Duration::from_millis(100)).unwrap();
        for event in events.drain() {
            seen.push(event);
        }
        if let Some(event) = seen.iter().find(|event| wanted(event)) {
            return Some(*event);
        }
    }
    None
}

fn of(event: &Event, pid: u32) -> bool {
    event.process().is_some_and(|process| process.id.pid == pid)
}

fn exited(event: &Event, pid: u32) -> bool {
    of(event, pid) && matches!(event, Event::ProcessExited { .. })
}

/// Starts a worker that can start children, and its set with events. The set is loaded
/// first, so it has the final usage when an exit is reported.
struct Tree {
    worker: Workload,
    probes: ProbeSet,
    cpu: Handle<CpuUsage, CpuSystem>,
    events: Events,
}

impl Tree {
    fn new() -> Self {
        let worker = Workload::start(WORKLOAD, &["memory"]);
        let mut probes = ProbeSet::builder().filter(Filter::tree(worker.pid())).build().unwrap();
        let cpu = probes.add(CpuProbe::builder()).unwrap();
        let events = all().filter_of(&probes).load().unwrap();
        Self { worker, probes, cpu, events }
    }

    /// Starts a child that ends.
    fn child(&mut self) -> u32 {
        let answer = self.worker.ask("child-touch 2000");
        answer.split_whitespace().next().unwrap().parse().unwrap()
    }
}

#[test]
fn events_of_a_set_are_those_of_its_filter_and_its_usage_is_final() {
    let hides = hides_events();
    let _busy = keep_cpus_busy(hides);
    let mut tree = Tree::new();
    let mut family = vec![tree.worker.pid()];
    let mut ends = 0;
    for _ in 0..10 {
        Command::new("/bin/true").status().unwrap();
        let pid = tree.child();
        family.push(pid);
        let mut seen = Vec::new();
        let end = until(&mut tree.events, &mut seen, |event| exited(event, pid));
        assert!(seen.iter().all(|event| {
            event.process().is_some_and(|process| family.contains(&process.id.pid))
        }));
        let first = seen.iter().find(|event| of(event, pid)).unwrap();
        assert!(matches!(first, Event::ProcessStarted { .. }), "{seen:?}");
        let Some(end) = end else {
            assert!(hides, "no end of {pid}: {seen:?}");
            continue;
        };
        ends += 1;
        let process = end.process().unwrap();
        assert_eq!(process.info.parent.unwrap().pid, tree.worker.pid());
        let usage = tree.probes.final_usage(tree.cpu, process.id).unwrap();
        let usage = usage.expect("the set was attached first");
        let snapshot = tree.probes.snapshot().unwrap();
        let row = snapshot.processes().find(|row| row.id == process.id).unwrap();
        assert!(row.info.exited);
        assert_eq!(usage.cpu_time, row[tree.cpu].cpu_time);
        assert!(usage.cpu_time > Duration::ZERO);
    }
    assert!(ends > 0);
    assert_eq!(tree.events.losses().unwrap().total(), 0);
    assert_eq!(tree.events.incomplete_exits().unwrap(), 0);
}

#[test]
fn events_of_a_single_probe_are_those_of_its_filter() {
    let _busy = keep_cpus_busy(hides_events());
    let mut listed = Workload::start(WORKLOAD, &["memory"]);
    let cpu = CpuProbe::builder().filter(Filter::processes([listed.pid()])).load().unwrap();
    let mut events = all().memory_threshold(100 * MIB).filter_of(&cpu).load().unwrap();
    let mut other = Workload::start(WORKLOAD, &["memory"]);
    for worker in [&mut other, &mut listed] {
        worker.ask("map 1 150000");
        worker.ask("touch 1");
        worker.ask("child-touch 2000");
    }
    let pid = listed.pid();
    other.kill();
    listed.kill();
    let mut seen = Vec::new();
    let end = until(&mut events, &mut seen, |event| exited(event, pid));
    assert!(seen.iter().all(|event| of(event, pid)), "{seen:?}");
    let crossings = seen.iter().filter(|event| matches!(event, Event::MemoryThreshold { .. }));
    assert_eq!(crossings.count(), 1, "{seen:?}");
    let Some(end) = end else {
        assert!(hides_events(), "{seen:?}");
        return;
    };
    let usage = cpu.final_usage(end.process().unwrap().id).unwrap();
    assert!(usage.unwrap().cpu_time > Duration::ZERO);
}

#[test]
fn the_final_usage_is_there_until_a_snapshot_takes_it() {
    let Some(volume) = QuietVolume::new("the_final_usage_is_there") else { return };
    let file = volume.path().join("file");
    std::fs::write(&file, vec![1; 1 << 20]).unwrap();
    settle(volume.device());
    let hides = hides_events();
    let _busy = keep_cpus_busy(hides);
    let mut probes = ProbeSet::new().unwrap();
    let cpu = probes.add(CpuProbe::builder()).unwrap();
    let mem = probes.add(MemProbe::builder()).unwrap();
    let disk = probes.add(DiskProbe::builder()).unwrap();
    let mut events = Events::builder().exited(true).load().unwrap();
    let mut found = None;
    for _ in 0..20 {
        let mut worker = Workload::start(WORKLOAD, &["disk", "child", file.to_str().unwrap()]);
        worker.tell("go");
        let answer = worker.line();
        let answer: Vec<u64> = answer.split(' ').map(|word| word.parse().unwrap()).collect();
        let pid = answer[0] as u32;
        let mut seen = Vec::new();
        if let Some(event) = until(&mut events, &mut seen, |event| exited(event, pid)) {
            found = Some((event.process().unwrap().id, answer));
            break;
        }
        assert!(hides, "no end of {pid}: {seen:?}");
    }
    let (id, answer) = found.expect("some exits are visible");
    let [_, cpu_ns, faults, read_bytes, dirtied_bytes, cancelled_bytes] = answer[..] else {
        panic!("{answer:?}")
    };
    let used = probes.final_usage(cpu, id).unwrap().expect("CPU time");
    let memory = probes.final_usage(mem, id).unwrap().expect("memory");
    let io = probes.final_usage(disk, id).unwrap().expect("I/O");
    println!("rusage and /proc say {answer:?}; {used:?}; {memory:?}; {io:#?}");
    // rusage is rounded down to us and lacks the last steps of a process
    let time = used.cpu_time.as_nanos() as u64;
    let most = cpu_ns + if emulated() { 2_000_000 } else { 500_000 };
    assert!(time + 2000 >= cpu_ns && time <= most, "{time}, {cpu_ns} by rusage");
    assert_eq!(memory.minor_faults, faults, "{memory:?}");
    assert!(memory.resident_peak_bytes.unwrap() >= 16 * MIB, "{memory:?}");
    assert_eq!(
        (io.dirtied_bytes, io.cancelled_bytes),
        (Some(dirtied_bytes), Some(cancelled_bytes))
    );
    let whole = |done: u64, truth: u64| {
        let least = if hides { truth - truth / 10 } else { truth };
        assert!((least..=truth).contains(&done), "{done} of {truth}: {io:#?}");
    };
    whole(io.by_class.foreground.read_bytes, read_bytes);
    whole(io.by_class.write_back.written_bytes, 1 << 20);
    assert!(read_bytes >= 50 * 4096, "and of its program: {read_bytes}");
    assert!(io.total.operations() > 50 && !io.devices.is_empty(), "{io:#?}");
    let stranger = ProcessId { pid: id.pid, start_time_ns: id.start_time_ns + 1 };
    assert_eq!(probes.final_usage(cpu, stranger).unwrap(), None);
    assert_eq!(probes.final_usage(disk, stranger).unwrap(), None);
    let me = CpuProbe::builder().load().unwrap().snapshot().unwrap();
    let me = me.process(std::process::id()).unwrap().id;
    assert_eq!(probes.final_usage(disk, me).unwrap(), None, "it is alive");

    // a process that lived in one window only has the same figures in its row
    let snapshot = probes.snapshot().unwrap();
    let row = snapshot.processes().find(|row| row.id == id).unwrap();
    assert_eq!((&row[cpu], &row[mem], &row[disk]), (&used, &memory, &io));
    assert_eq!(probes.final_usage(cpu, id).unwrap(), None, "a snapshot has taken it");
    assert_eq!(probes.final_usage(mem, id).unwrap(), None);
    assert_eq!(probes.final_usage(disk, id).unwrap(), None);
    support("events.final_usage", true, "");
}
