//! Compares the probe with the simple method of charging the process that runs when a
//! request completes. Shows the purpose of the map of owners. Needs clang.

use std::{path::Path, process::Command};

use aya::{Btf, Ebpf, EbpfLoader, maps::HashMap, programs::BtfTracePoint};
use ebpfmetrics::{DiskProbe, Probe as _, disk::DiskSnapshot};
use ebpfmetrics_suite::{
    LoopDevice, QuietVolume, Workload, device_id, directory_on_disk, settle, skip,
};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

struct AtCompletion(Ebpf);

impl AtCompletion {
    fn attach(test: &str) -> Option<Self> {
        let root = env!("CARGO_MANIFEST_DIR");
        let compiled = Command::new("clang-19")
            .args(["-O2", "-g", "-target", "bpf", "-mcpu=v2", "-c", "-o", "-"])
            .arg(format!("-I{root}/ebpf-probes/bpf/include"))
            .arg(format!("{root}/tests/bpf/at_completion.bpf.c"))
            .output();
        let Ok(compiled) = compiled else {
            skip(test, "there is no clang-19");
            return None;
        };
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let btf = Btf::from_sys_fs().unwrap();
        let mut object = EbpfLoader::new().btf(Some(&btf)).load(&compiled.stdout).unwrap();
        let program: &mut BtfTracePoint =
            object.program_mut("at_completion").unwrap().try_into().unwrap();
        program.load("block_rq_complete", &btf).unwrap();
        program.attach().unwrap();
        Some(Self(object))
    }

    /// Bytes that a process is charged with on a device, and those of all.
    fn share(&self, device: &str, pid: u32) -> (u64, u64) {
        let (major, minor) = device_id(device);
        let map: HashMap<_, u64, u64> = self.0.map("bytes_of").unwrap().try_into().unwrap();
        let of_device: Vec<_> = (map.iter().flatten())
            .filter(|(key, _)| key >> 32 == u64::from(major << 20 | minor))
            .collect();
        let right = of_device.iter().filter(|(key, _)| *key as u32 == pid);
        (right.map(|(_, bytes)| bytes).sum(), of_device.iter().map(|(_, bytes)| bytes).sum())
    }
}

fn disk_work(arguments: &[&str]) -> Workload {
    Workload::start(WORKLOAD, &[&["disk"], arguments].concat())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Percent of a device's bytes that are charged to a process.
fn ours(snapshot: &DiskSnapshot, device: &str, pid: u32) -> f64 {
    let all = &snapshot.device(device).unwrap().usage;
    let id = device_id(device);
    let row = snapshot.process(pid).unwrap();
    let there = row.usage.devices.iter().find(|on| (on.device.major, on.device.minor) == id);
    let there = there.map(|on| on.total.read_bytes + on.total.written_bytes).unwrap_or(0);
    there as f64 / (all.read_bytes + all.written_bytes) as f64 * 100.0
}

fn simple(at_completion: &AtCompletion, device: &str, pid: u32) -> f64 {
    let (right, all) = at_completion.share(device, pid);
    right as f64 / all as f64 * 100.0
}

#[test]
fn buffered_writes() {
    const TEST: &str = "thesis_buffered_writes";
    let Some(volume) = QuietVolume::new(TEST) else { return };
    let mut probe = DiskProbe::builder().load().unwrap();
    let mut writer = disk_work(&["write", text(&volume.path().join("file")), "67108864"]);
    settle(volume.device());
    let Some(at_completion) = AtCompletion::attach(TEST) else { return };
    probe.reset().unwrap();
    writer.go();
    settle(volume.device());
    let ours = ours(&probe.snapshot().unwrap(), volume.device(), writer.pid());
    let simple = simple(&at_completion, volume.device(), writer.pid());
    println!("buffered writes charged right: {ours:.1} %, at completion {simple:.1} %");
    // the rest is metadata
    assert!(ours >= 98.0, "{ours}");
    assert!(simple <= 10.0, "{simple}: then what is the owner map for?");
}

#[test]
fn direct_io_of_two_processes() {
    const TEST: &str = "thesis_direct_io";
    let Some(files) = directory_on_disk(TEST) else { return };
    let device = LoopDevice::new(files.path(), 64 << 20);
    let mut probe = DiskProbe::builder().load().unwrap();
    let mut two: Vec<_> = (0..2)
        .map(|_| disk_work(&["direct", text(&device.path()), "2000", "1000", "4096", "4"]))
        .collect();
    settle(device.name());
    let Some(at_completion) = AtCompletion::attach(TEST) else { return };
    probe.reset().unwrap();
    two.iter_mut().for_each(|one| one.tell("go"));
    two.iter_mut().for_each(|one| assert_eq!(one.line(), "done"));
    settle(device.name());
    let snapshot = probe.snapshot().unwrap();
    let ours: f64 = two.iter().map(|one| ours(&snapshot, device.name(), one.pid())).sum();
    let simple: f64 = two.iter().map(|one| simple(&at_completion, device.name(), one.pid())).sum();
    println!("direct I/O charged right: {ours:.1} %, at completion {simple:.1} %");
    assert!(ours >= 99.0, "{ours}");
    assert!(simple < ours, "{simple}");
}
