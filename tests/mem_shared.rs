//! Pages that several processes map, the kernel's own books of cgroups, and the machine.

use std::{collections::HashMap, error::Error as _, fs, io, time::Duration};

use ebpfmetrics::{
    ErrorKind, Filter, MemProbe, Probe as _, ProcessId,
    mem::{CgroupMemory, MemSnapshot, ProportionalMemory},
    process::{CgroupHierarchy, Cgroups},
};
use ebpfmetrics_suite::{MemoryLimit, Workload, poll, skip};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const MIB: u64 = 1 << 20;

fn worker() -> Workload {
    let mut worker = Workload::start(WORKLOAD, &["memory"]);
    worker.ask("map 0 64");
    worker.ask("faults");
    worker
}

/// A file of lines `NAME: KIB kB`, in bytes.
fn table(path: &str) -> HashMap<String, u64> {
    let text = fs::read_to_string(path).unwrap();
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let kib: u64 = value.split_whitespace().next()?.parse().ok()?;
        Some((name.to_owned(), kib << 10))
    };
    text.lines().filter_map(line).collect()
}

fn id(snapshot: &MemSnapshot, pid: u32) -> ProcessId {
    snapshot.process(pid).unwrap_or_else(|| panic!("no row of {pid}")).id
}

/// Case 09: children that only read what their parent has.
#[test]
fn proportional_sets_count_shared_pages_once() {
    let mut worker = worker();
    worker.ask("map 1 102400");
    worker.ask("touch 1");
    let children = worker.ask("hold 10 4");
    let children = children.split(' ').map(|pid| pid.parse().unwrap());
    let pids: Vec<u32> = children.chain([worker.pid()]).collect();
    let mut probe = MemProbe::builder().filter(Filter::tree(worker.pid())).load().unwrap();
    let snapshot = probe.snapshot().unwrap();
    let mut sum = ProportionalMemory::default();
    let mut truth = 0;
    for &pid in &pids {
        let ours = ProportionalMemory::of(id(&snapshot, pid)).unwrap();
        let kernel = table(&format!("/proc/{pid}/smaps_rollup"));
        assert_eq!(ours.resident_bytes, kernel["Rss"]);
        assert_eq!(Some(ours.resident_bytes), snapshot.process(pid).unwrap().usage.resident_bytes);
        let private = kernel["Private_Clean"] + kernel["Private_Dirty"];
        // workloads of other tests map the same files, and come and go
        assert!(ours.private_bytes.abs_diff(private) <= 2 * MIB, "{ours:?}, kernel {kernel:?}");
        for (ours, name) in [
            (ours.proportional_bytes, "Pss"),
            (ours.proportional_anon_bytes, "Pss_Anon"),
            (ours.proportional_file_bytes, "Pss_File"),
            (ours.proportional_shmem_bytes, "Pss_Shmem"),
            (ours.proportional_swap_bytes, "SwapPss"),
        ] {
            assert!(ours.abs_diff(kernel[name]) <= 2 * MIB, "{name}: {ours}, kernel {kernel:?}");
        }
        sum += ours;
        truth += kernel["Pss"];
    }
    println!("{sum:?}");
    assert!(sum.proportional_bytes.abs_diff(truth) <= 4 * MIB, "{sum:?}, kernel {truth}");
    assert!((100 * MIB..110 * MIB).contains(&sum.proportional_bytes), "{sum:?}");
    // the sum of resident sets is not that
    assert!(snapshot.sum().resident_bytes.unwrap() >= 1100 * MIB);
    assert_eq!(Some(sum.resident_bytes), snapshot.sum().resident_bytes);
}

#[test]
fn a_process_that_has_ended_or_may_not_be_read_is_an_error() {
    let mut worker = worker();
    let mut probe = MemProbe::builder().load().unwrap();
    let snapshot = probe.snapshot().unwrap();
    let process = id(&snapshot, worker.pid());
    let resident = ProportionalMemory::of(process).unwrap().resident_bytes;
    assert!(resident > MIB);
    // another that had the pid before
    let earlier = ProcessId { start_time_ns: process.start_time_ns - 1_000_000_000, ..process };
    let kind = |process| ProportionalMemory::of(process).unwrap_err().kind();
    assert_eq!(kind(earlier), ErrorKind::NoSuchProcess);
    assert_eq!(kind(ProcessId { pid: 0, ..process }), ErrorKind::NoSuchProcess);
    assert_eq!(kind(ProcessId { pid: u32::MAX, ..process }), ErrorKind::NoSuchProcess);
    let ask = |work: &str, more: &[&str]| {
        let numbers = [process.pid.to_string(), process.start_time_ns.to_string()];
        let mut arguments = vec![work, &numbers[0], &numbers[1]];
        arguments.extend(more);
        Workload::start_without_waiting(WORKLOAD, &arguments).line()
    };
    let answer = ask("proportional-as-user", &[]);
    assert!(
        answer.starts_with("PermissionDenied ") && answer.contains("CAP_SYS_PTRACE"),
        "{answer}"
    );
    match fs::exists("/proc/self/ns/time").unwrap() {
        true => assert_eq!(ask("proportional-ahead", &["5000"]), resident.to_string()),
        false => skip("time_namespace", "this kernel has no time namespaces"),
    }
    // what has no memory holds none
    let kernel_thread = snapshot.processes.iter().find(|row| row.info.kernel_thread).unwrap();
    assert_eq!(ProportionalMemory::of(kernel_thread.id).unwrap(), ProportionalMemory::default());
    let mut zombie =
        std::process::Command::new(WORKLOAD).args(["job", "burn", "0"]).spawn().unwrap();
    let zombie_id = loop {
        let snapshot = probe.snapshot().unwrap();
        let row = snapshot.process(zombie.id());
        if let Some(row) = row.filter(|row| row.usage.resident_bytes == Some(0)) {
            break row.id;
        }
    };
    assert_eq!(ProportionalMemory::of(zombie_id).unwrap(), ProportionalMemory::default());
    zombie.wait().unwrap();
    assert_eq!(kind(zombie_id), ErrorKind::NoSuchProcess);
    // the memory of one whose first thread has ended is that of the others
    worker.ask("map 1 20480");
    worker.ask("touch 1");
    worker.ask("leader-exits");
    let memory = ProportionalMemory::of(process).unwrap();
    let ours = probe.snapshot().unwrap().process(process.pid).unwrap().usage.resident_bytes;
    assert_eq!(Some(memory.resident_bytes), ours);
    assert!(memory.proportional_bytes >= 20 * MIB, "{memory:?}");
    worker.kill();
    assert_eq!(kind(process), ErrorKind::NoSuchProcess);
}

#[test]
fn cgroups_have_the_kernels_own_figures() {
    let limit = MemoryLimit::new(900 * MIB).expect("a memory cgroup");
    let mut worker = worker();
    limit.hold(worker.pid()).unwrap();
    worker.ask("map 1 51200");
    worker.ask("touch 1");
    let before = CgroupMemory::read(limit.path()).unwrap();
    let charged = 50 * MIB..60 * MIB;
    assert!(charged.contains(&before.current_bytes.unwrap()), "{before:?}");
    worker.ask("unmap 1");
    let after = CgroupMemory::read(limit.path()).unwrap();
    println!("{before:?} {after:?}");
    assert!(after.current_bytes.unwrap() < 10 * MIB, "{after:?}");
    let peak = ["memory.peak", "memory.max_usage_in_bytes"].map(|name| limit.path().join(name));
    let peak = peak.iter().find_map(|path| fs::read_to_string(path).ok());
    assert_eq!(after.peak_bytes, peak.map(|text| text.trim().parse().unwrap()));
    assert!(after.peak_bytes.is_none_or(|peak| charged.contains(&peak)), "{after:?}");
    // by its path
    let hierarchy = limit.hierarchy();
    let cgroups = Cgroups::of(&hierarchy);
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(limit.path()).unwrap());
    let directory = hierarchy.directory(cgroups.path(inode).unwrap()).unwrap();
    assert_eq!(directory, limit.path());
    assert_eq!(CgroupHierarchy::controller("no such controller").directory("/".as_ref()), None);
    // without a memory controller
    let other = tempfile::tempdir().unwrap();
    assert_eq!(CgroupMemory::read(other.path()).unwrap(), CgroupMemory::default());
    let error = CgroupMemory::read(&limit.path().join("missing")).unwrap_err();
    let source = error.source().unwrap().downcast_ref::<io::Error>().unwrap();
    assert_eq!((error.kind(), source.kind()), (ErrorKind::System, io::ErrorKind::NotFound));
}

#[test]
fn the_memory_of_the_machine_equals_meminfo() {
    let mut probe = MemProbe::builder().load().unwrap();
    // other processes change it all the time
    let equal = || {
        let ours = probe.snapshot().unwrap().system.machine.unwrap();
        let kernel = table("/proc/meminfo");
        assert_eq!(ours.total_bytes, kernel["MemTotal"]);
        let differences = [
            (ours.free_bytes, "MemFree"),
            (ours.available_bytes.unwrap(), "MemAvailable"),
            (ours.cached_bytes, "Cached"),
            (ours.buffers_bytes, "Buffers"),
            (ours.swap_total_bytes, "SwapTotal"),
            (ours.swap_free_bytes, "SwapFree"),
        ]
        .map(|(ours, name)| ours.abs_diff(kernel[name]));
        differences.iter().all(|bytes| *bytes <= 256 << 10).then_some(())
    };
    assert!(poll(Duration::from_secs(20), equal).is_some());
}
