//! Events together with all built-in probes.

use std::time::{Duration, Instant};

use ebpfmetrics::{CpuProbe, DiskProbe, Event, Events, MemProbe, Probe as _, ProbeSet, ProcessId};
use ebpfmetrics_suite::{QuietVolume, Workload, emulated, settle, support};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const MIB: u64 = 1 << 20;
/// Releases come an RCU grace period after the end.
const LATE: Duration = Duration::from_secs(8);

fn hides_events() -> bool {
    let degraded = CpuProbe::builder().load().unwrap().health().unwrap().degraded;
    degraded.iter().any(|it| it.feature == "process 1")
}

/// Takes events until a process exits, or until that is late.
fn exit_of(events: &mut Events, pid: u32, seen: &mut Vec<Event>) -> Option<Event> {
    let is_it = |event: &Event| matches!(event, Event::ProcessExited { process, .. } if process.id.pid == pid);
    let start = Instant::now();
    while start.elapsed() < LATE {
        events.wait(Duration::from_millis(100)).unwrap();
        seen.extend(events.drain());
        if let Some(event) = seen.iter().find(|event| is_it(event)) {
            return Some(*event);
        }
    }
    None
}

#[test]
fn the_final_usage_is_there_until_a_snapshot_takes_it() {
    let Some(volume) = QuietVolume::new("the_final_usage_is_there") else { return };
    let file = volume.path().join("file");
    std::fs::write(&file, vec![1; 1 << 20]).unwrap();
    settle(volume.device());
    let hides = hides_events();
    let _busy = hides.then(|| Workload::start(WORKLOAD, &["spin", "2"]));
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
        if let Some(event) = exit_of(&mut events, pid, &mut seen) {
            found = Some((event.process().unwrap().id, answer));
            break;
        }
        assert!(hides, "no end of {pid}: {seen:?}");
    }
    let (id, answer) = found.expect("not all are hidden");
    let [_, cpu_ns, faults, read_bytes, dirtied_bytes, cancelled_bytes] = answer[..] else {
        panic!("{answer:?}")
    };
    let used = probes.final_usage(cpu, id).unwrap().expect("CPU time");
    let memory = probes.final_usage(mem, id).unwrap().expect("memory");
    let io = probes.final_usage(disk, id).unwrap().expect("I/O");
    println!("rusage and /proc say {answer:?}; {used:?}; {memory:?}; {io:#?}");
    // rusage is cut to us, and knows nothing of the last steps of a process
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

    // for a process that lived in one window only, the row has the same figures
    let snapshot = probes.snapshot().unwrap();
    let row = snapshot.processes().find(|row| row.id == id).unwrap();
    assert_eq!((&row[cpu], &row[mem], &row[disk]), (&used, &memory, &io));
    assert_eq!(probes.final_usage(cpu, id).unwrap(), None, "the snapshot has it");
    assert_eq!(probes.final_usage(mem, id).unwrap(), None);
    assert_eq!(probes.final_usage(disk, id).unwrap(), None);
    support("events.final_usage", true, "");
}
