//! Events at the moment they happen.

use std::{
    collections::HashMap,
    future::poll_fn,
    os::unix::process::ExitStatusExt as _,
    pin::Pin,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use ebpfmetrics::{
    CpuProbe, ErrorKind, Event, Events, Filter, Probe as _, ProcessId, cpu::CpuSnapshot,
    events::EventsBuilder, probe::Statistics,
};
use ebpfmetrics_suite::{
    MemoryLimit, Workload, emulated, loaded_objects, monotonic_ns, poll, support,
};
use futures_core::Stream as _;

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

#[test]
fn a_process_is_reported_from_its_start_to_its_end() {
    let busy = keep_cpus_busy(hides_events());
    let mut events = all().load().unwrap();
    let start = monotonic_ns();
    let mut child = Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    let end = monotonic_ns();
    let mut seen = Vec::new();
    let gone = until(&mut events, &mut seen, |event| exited(event, pid));
    drop(busy);
    seen.retain(|event| of(event, pid));
    let [
        Event::ProcessStarted { process: started },
        Event::ProcessExecuted { process: executed },
        rest @ ..,
    ] = seen.as_slice()
    else {
        panic!("{seen:?}")
    };
    assert_eq!(started.info.parent.unwrap().pid, std::process::id());
    assert_ne!(started.info.comm, "sh");
    assert_eq!(executed.info.comm, "sh");
    assert_eq!(executed.id, started.id);
    assert!(start <= started.time_ns && started.time_ns <= executed.time_ns);
    let Some(Event::ProcessExited { process, exit_status }) = gone else {
        assert!(hides_events(), "no end: {seen:?}");
        return;
    };
    assert_eq!(rest.len(), 1, "{seen:?}");
    assert_eq!(process.id, started.id);
    assert_eq!(exit_status.code(), Some(7));
    assert!(process.info.exited);
    assert_eq!(process.info.parent, started.info.parent);
    assert_eq!(
        (process.info.uid, process.info.cgroup_id),
        (started.info.uid, started.info.cgroup_id)
    );
    assert!(executed.time_ns <= process.time_ns && process.time_ns <= end, "{seen:?}");
    for kind in ["started", "executed", "exited"] {
        support(&format!("events.{kind}"), true, "ring buffer");
    }
}

#[test]
fn a_signal_is_reported_and_threads_are_not() {
    let busy = keep_cpus_busy(hides_events());
    let mut events = all().load().unwrap();
    let work = Workload::start(WORKLOAD, &["threads", "200"]);
    let pid = work.pid();
    thread::sleep(Duration::from_millis(300));
    work.kill();
    let mut seen = Vec::new();
    let gone = until(&mut events, &mut seen, |event| exited(event, pid));
    drop(busy);
    let Some(Event::ProcessExited { exit_status, .. }) = gone else {
        assert!(hides_events());
        return;
    };
    assert_eq!(exit_status.signal(), Some(libc::SIGKILL));
    let mine = |event: &&Event| {
        of(event, pid)
            || event
                .process()
                .and_then(|process| process.info.parent)
                .is_some_and(|it| it.pid == pid)
    };
    assert_eq!(seen.iter().filter(mine).count(), 3, "started, executed, exited: {seen:?}");
}

#[test]
fn only_programs_of_selected_events_are_loaded() {
    let loaded = |builder: EventsBuilder| builder.load().unwrap().health().unwrap().programs;
    assert_eq!(loaded(Events::builder().started(true)), 1);
    assert_eq!(loaded(Events::builder().exited(true)), 2);
    assert_eq!(loaded(Events::builder().oom_kills(true)), 1);
    assert_eq!(loaded(all().memory_threshold(MIB)), 5);
    for wrong in [
        Events::builder(),
        all().buffer_bytes(0),
        all().buffer_bytes(u32::MAX),
        Events::builder().memory_threshold(0),
    ] {
        assert_eq!(wrong.load().unwrap_err().kind(), ErrorKind::InvalidOption);
    }
}

#[test]
fn nothing_is_left_after_drop() {
    let before = loaded_objects();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let open = descriptors();
    for _ in 0..3 {
        let mut events = all().memory_threshold(MIB).load().unwrap();
        events.drain().count();
        assert!(events.health().unwrap().map_bytes >= MIB);
        drop(events);
    }
    assert!(descriptors() <= open + 2, "other tests may have opened some");
    // other tests load at the same time: theirs are freed too in the end
    let mine = loaded_objects().programs.difference(&before.programs).copied().collect::<Vec<_>>();
    let gone = poll(Duration::from_secs(60), || {
        let now = loaded_objects().programs;
        mine.iter().all(|id| !now.contains(id)).then_some(())
    });
    assert!(gone.is_some(), "left behind: {mine:?}");
}

#[test]
fn the_descriptor_is_readable_when_there_is_something() {
    let mut events = Events::builder().oom_kills(true).load().unwrap();
    assert!(!events.wait(Duration::from_millis(20)).unwrap(), "nothing has happened");
    assert_eq!(events.drain().count(), 0);
    drop(events);
    let mut events = Events::builder().started(true).load().unwrap();
    Command::new("/bin/true").status().unwrap();
    assert!(events.wait(Duration::from_secs(5)).unwrap());
    assert!(events.drain().count() > 0);
}

#[test]
fn a_threshold_is_reported_once_per_crossing() {
    let mut events = Events::builder().memory_threshold(200 * MIB).load().unwrap();
    let _statistics = Statistics::enable().unwrap();
    let mut worker = Workload::start(WORKLOAD, &["memory"]);
    let pid = worker.pid();
    let mut count = |worker: &mut Workload| {
        worker.ask("faults");
        let mine = events.drain().filter(|event| of(event, pid));
        mine.map(|event| match event {
            Event::MemoryThreshold { resident_bytes, .. } => resident_bytes,
            other => panic!("{other:?}"),
        })
        .collect::<Vec<_>>()
    };
    worker.ask("map 1 150000");
    worker.ask("touch 1");
    assert_eq!(count(&mut worker), [], "150 MB are below");
    // sizes are in KiB
    worker.ask("map 2 100000");
    worker.ask("touch 2");
    let reported = count(&mut worker);
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert!((200 * MIB..202 * MIB).contains(&reported[0]), "{reported:?}");
    // back and forth around the threshold, within an eighth of it: 244 MB less 40
    for id in 3..8 {
        worker.ask(&format!("map {id} 30000"));
        worker.ask(&format!("touch {id}"));
        worker.ask(&format!("unmap {id}"));
    }
    worker.ask("map 9 10000");
    worker.ask("touch 9");
    assert_eq!(count(&mut worker), [], "it was above all the time");
    worker.ask("unmap 1");
    assert_eq!(count(&mut worker), []);
    worker.ask("map 1 150000");
    worker.ask("touch 1");
    assert_eq!(count(&mut worker).len(), 1, "again from below");
    println!("{:?}", events.cost().unwrap());
    assert_eq!(events.losses().unwrap().total(), 0);
    support("events.memory_threshold", true, "tp_btf/rss_stat");
}

#[test]
fn a_process_killed_for_lack_of_memory_is_reported() {
    let limit = MemoryLimit::new(64 * MIB).expect("a cgroup with a limit on memory");
    let mut events = Events::builder().oom_kills(true).load().unwrap();
    let mut worker = Workload::start(WORKLOAD, &["memory"]);
    let pid = worker.pid();
    limit.hold(pid).unwrap();
    worker.ask("map 1 200000");
    worker.tell("touch 1");
    assert_eq!(worker.line(), "", "the kernel kills it");
    drop(worker);
    let mut seen = Vec::new();
    let killed = until(&mut events, &mut seen, |event| of(event, pid));
    let Some(Event::OomKilled { process }) = killed else { panic!("{seen:?}") };
    assert_eq!(process.info.comm, "workload");
    support("events.oom_killed", true, "signal->oom_mm");
}

/// The events of one workload's children.
#[derive(Debug, Default)]
struct Seen {
    started: HashMap<ProcessId, u32>,
    exited: HashMap<ProcessId, u32>,
    lost: u64,
    unordered: u64,
    cpu_ns: u64,
    without_usage: u64,
}

impl Seen {
    fn take(&mut self, event: Event, parent: u32, cpu: Option<&CpuProbe>) {
        let process = match event {
            Event::Lost { events } => {
                self.lost += events;
                return;
            }
            event => *event.process().unwrap(),
        };
        if process.info.parent.is_none_or(|it| it.pid != parent) {
            return;
        }
        match event {
            Event::ProcessStarted { .. } => *self.started.entry(process.id).or_default() += 1,
            Event::ProcessExited { .. } => {
                *self.exited.entry(process.id).or_default() += 1;
                self.unordered += u64::from(!self.started.contains_key(&process.id));
                match cpu.and_then(|cpu| cpu.final_usage(process.id).unwrap()) {
                    Some(usage) => self.cpu_ns += usage.cpu_time.as_nanos() as u64,
                    None => self.without_usage += 1,
                }
            }
            _ => {}
        }
    }
}

/// How many processes have exited, of all or of one parent, and their CPU time.
fn exited_in(snapshot: &CpuSnapshot, parent: Option<u32>) -> (u64, u64) {
    let rows = || {
        let exited = snapshot.processes.iter().filter(|row| row.info.exited);
        exited.filter(|row| parent.is_none() || parent == row.info.parent.map(|it| it.pid))
    };
    let time: Duration = rows().map(|row| row.usage.cpu_time).sum();
    (rows().count() as u64, time.as_nanos() as u64)
}

/// 20,000 processes (2,000 on an emulated machine, 100,000 with `EBPFMETRICS_LONG`) are
/// reported one by one. Their CPU time is compared between a probe with rows for all, a probe
/// with rows for few, and the kernel's own account (RUSAGE_CHILDREN of their parent).
#[test]
fn many_short_lived_processes_are_each_reported_once_with_all_they_used() {
    let count: u32 = match std::env::var_os("EBPFMETRICS_LONG") {
        Some(_) => 100_000,
        None if emulated() => 2000,
        None => 20_000,
    };
    let hides = hides_events();
    let _busy = keep_cpus_busy(hides);
    // without the processes of a busy machine, which would differ between the two
    let probe = || CpuProbe::builder().filter(Filter::tree(std::process::id()));
    let mut cpu = probe().max_exited(count * 3).load().unwrap();
    let mut few = probe().max_exited(count / 4).load().unwrap();
    let mut events =
        Events::builder().started(true).exited(true).buffer_bytes(8 << 20).load().unwrap();
    let _statistics = Statistics::enable().unwrap();
    let mut work = Workload::start(WORKLOAD, &["children", &count.to_string(), "500"]);
    let pid = work.pid();
    let mut reported = Seen::default();
    let (is_done, done) = std::sync::mpsc::channel();
    let reader = thread::spawn(move || {
        let truth_ns: u64 = work.line().parse().unwrap();
        is_done.send(truth_ns).unwrap();
        work
    });
    let mut truth_ns = None;
    let mut last = Instant::now();
    while truth_ns.is_none() || last.elapsed() < Duration::from_secs(2) {
        if events.wait(Duration::from_millis(200)).unwrap() {
            for event in events.drain() {
                reported.take(event, pid, Some(&cpu));
            }
        }
        if let Ok(ns) = done.try_recv() {
            (truth_ns, last) = (Some(ns), Instant::now());
        }
    }
    let (truth_ns, work) = (truth_ns.unwrap(), reader.join().unwrap());
    let (cpu, few) = (cpu.snapshot().unwrap(), few.snapshot().unwrap());
    drop(work);
    let losses = events.losses().unwrap();
    let costs = events.cost().unwrap().programs;
    let costs: Vec<_> = costs.iter().map(|it| (&it.program, it.ns_per_run())).collect();
    let off = |ns: u64| ns as f64 / truth_ns as f64 - 1.0;
    let rows = exited_in(&cpu, Some(pid));
    // of the whole tree: processes in the overflow have no parent any more
    let (of_all, of_few) = (exited_in(&cpu, None), exited_in(&few, None));
    let of_few = (
        of_few.0 + few.overflow.processes,
        of_few.1 + few.overflow.usage.cpu_time.as_nanos() as u64,
    );
    let folding = of_few.1 as f64 / of_all.1 as f64 - 1.0;
    let context = format!(
        "{count} processes: {} started, {} exited, {} lost, {} without usage; rusage {truth_ns} ns; \
         off by {:+.5} by events, {:+.5} by the {} rows; with {} of {} in the overflow \
         {folding:+.5} from {} rows; {losses:?}; {:?}; {costs:?}",
        reported.started.len(),
        reported.exited.len(),
        reported.lost,
        reported.without_usage,
        off(reported.cpu_ns),
        off(rows.1),
        rows.0,
        few.overflow.processes,
        of_few.0,
        of_all.0,
        cpu.losses,
    );
    println!("{context}");
    assert!(
        reported.started.values().chain(reported.exited.values()).all(|&times| times == 1),
        "{context}"
    );
    let lost = |kind| losses.get(kind).unwrap();
    assert_eq!(lost("started") + lost("exited"), reported.lost, "{context}");
    assert_eq!(reported.lost, 0, "a buffer of 8 MiB is enough: {context}");
    assert_eq!(reported.started.len(), count as usize, "{context}");
    assert_eq!(reported.unordered, 0, "{context}");
    if hides {
        assert!(reported.exited.len() >= count as usize * 95 / 100, "{context}");
        assert!(off(reported.cpu_ns).abs() < 0.05, "{context}");
        assert!(off(rows.1).abs() < 0.01, "{context}");
    } else {
        assert_eq!(reported.exited.len(), count as usize, "{context}");
        assert_eq!(reported.without_usage, 0, "{context}");
        assert_eq!(rows.0, u64::from(count), "{context}");
        assert!(few.overflow.processes >= u64::from(count / 2), "{context}");
        // rusage is taken before a process has run its last steps, in which an emulated
        // CPU may lose its turn for 10 ms: of that the kernel's account knows nothing
        let most = if emulated() { 0.003 } else { 0.001 };
        for ns in [reported.cpu_ns, rows.1] {
            assert!((-0.001..=most).contains(&off(ns)), "{context}");
        }
    }
    // the two were loaded and read some ms apart
    assert!(folding.abs() <= if hides { 0.05 } else { 0.001 }, "{context}");
}

#[test]
fn events_without_room_are_counted_exactly() {
    const COUNT: u32 = 2000;
    let mut events = Events::builder().started(true).buffer_bytes(1).load().unwrap();
    let mut reference = Events::builder().started(true).load().unwrap();
    let _statistics = Statistics::enable().unwrap();
    let mut work = Workload::start(WORKLOAD, &["children", &COUNT.to_string(), "10"]);
    work.line();
    let mut reported = Seen::default();
    let mut delivered = 0;
    for event in events.drain() {
        delivered += u64::from(event.process().is_some());
        reported.take(event, work.pid(), None);
    }
    let mut all = Seen::default();
    let mut of_all = 0;
    for event in reference.drain() {
        of_all += 1;
        all.take(event, work.pid(), None);
    }
    let cost = reference.cost().unwrap();
    println!("{delivered} of {of_all}, {} lost; without a reader {cost:?}", reported.lost);
    assert_eq!((all.started.len(), all.lost), (COUNT as usize, 0));
    // 4 KiB hold some 30 events
    assert!((20..40).contains(&delivered), "{delivered}");
    assert!(reported.lost >= u64::from(COUNT) - delivered, "{reported:?}");
    let losses = events.losses().unwrap();
    assert!(losses.get("started").unwrap() >= reported.lost, "{losses:?}");
    assert!(losses.check().is_err());
    // the two begin and end some ms apart, and others start processes meanwhile
    let counted = reported.lost + delivered;
    let apart = if hides_events() { 500 } else { 5 };
    assert!(counted.abs_diff(of_all) <= apart, "{counted} by one, {of_all} by the other");

    // there is room again: nothing more is lost
    let more = |events: &mut Events| events.drain().collect::<Vec<_>>();
    more(&mut events);
    Command::new("/bin/true").status().unwrap();
    let next = more(&mut events);
    assert!(next.iter().any(|event| matches!(event, Event::ProcessStarted { .. })), "{next:?}");
    assert!(!next.iter().any(|event| matches!(event, Event::Lost { .. })), "{next:?}");
}

#[test]
fn a_stream_wakes_the_runtime_and_returns_the_events() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut stream = Events::builder().started(true).load().unwrap().stream().unwrap();
        let mut children = Vec::new();
        for _ in 0..50 {
            let child = Command::new("/bin/true").spawn().unwrap();
            let pid = child.id();
            children.push(child);
            let mut take = async || loop {
                let event = poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await;
                if of(&event.unwrap().unwrap(), pid) {
                    return;
                }
            };
            tokio::time::timeout(LATE, take()).await.expect("an event");
        }
        let mut events = stream.into_inner();
        Command::new("/bin/true").status().unwrap();
        assert!(events.wait(Duration::from_secs(5)).unwrap());
        for mut child in children {
            child.wait().unwrap();
        }
    });
}

/// Its exit was before the events were loaded, its release comes afterwards.
#[test]
fn an_exit_without_details_is_counted_apart() {
    let _busy = keep_cpus_busy(hides_events());
    let mut zombie = Command::new("/bin/true").spawn().unwrap();
    let pid = zombie.id();
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    poll(Duration::from_secs(5), || stat().contains(") Z ").then_some(())).unwrap();
    let probe = CpuProbe::builder().filter(Filter::tree(std::process::id())).load().unwrap();
    let mut filtered = all().filter_of(&probe).load().unwrap();
    let mut events = all().load().unwrap();
    zombie.wait().unwrap();
    let mut seen = Vec::new();
    let end = until(&mut events, &mut seen, |event| exited(event, pid));
    let Some(Event::ProcessExited { process, exit_status }) = end else {
        assert!(hides_events(), "{seen:?}");
        return;
    };
    assert!(exit_status.success() && process.info.exited);
    assert_eq!((process.info.parent, process.info.comm.as_bytes()), (None, b"true".as_slice()));
    assert!(events.incomplete_exits().unwrap() >= 1);
    assert_eq!(events.losses().unwrap().total(), 0, "all events were reported");
    assert!(events.losses().unwrap().check().is_ok());
    assert!(!filtered.drain().any(|event| exited(&event, pid)), "not known to be in the filter");
}
