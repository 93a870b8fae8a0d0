//! A real build, grouped by its tree. Where there is a compiler.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use ebpfmetrics::{
    CpuProbe, CpuSnapshot, DiskClass, DiskDeviceId, DiskProbe, DiskSnapshot, Joined,
    JoinedSnapshot, Kernel, MemProbe, MemSnapshot, Probe as _, ProcessTree, Snapshot as _,
};
use ebpfmetrics_suite::{
    LoopDevice, Mounted, device_id, directory_on_disk, rusage_of_children, settle, skip,
};

type All = JoinedSnapshot<(CpuSnapshot, MemSnapshot, DiskSnapshot)>;

const FILES: usize = 40;
const DATA_BYTES: usize = 256 << 10;

/// Sources that take a compiler some time and leave large objects.
fn write_sources(directory: &Path) {
    let objects: Vec<_> = (0..FILES).map(|number| format!("part{number}.o")).collect();
    for number in 0..FILES {
        let mut text = "#include <stdio.h>\n#include <stdlib.h>\n#include <math.h>\n".to_owned();
        text += &format!("char data{number}[{DATA_BYTES}] = {{1}};\n");
        for function in 0..60 {
            text += &format!(
                "double work{number}_{function}(double x, int n) {{ for (int i = 0; i < n; i++) \
                 x = x * {function}.5 + i % ({function} + 3); printf(\"%f\", x); return x; }}\n"
            );
        }
        fs::write(directory.join(format!("part{number}.c")), text).unwrap();
    }
    let makefile = format!("all: {}\n%.o: %.c\n\tcc -O2 -c $< -o $@\n", objects.join(" "));
    fs::write(directory.join("Makefile"), makefile).unwrap();
}

#[derive(Default)]
struct Sums {
    cpu_time: Duration,
    minor_faults: u64,
    /// Files' pages that the tree wrote: on the device, for it writes nowhere else.
    written_back: u64,
    /// What was written on the device, by class.
    device: BTreeMap<DiskClass, u64>,
    processes: usize,
}

impl Sums {
    fn add(&mut self, tree: &mut ProcessTree, snapshot: &All, device: DiskDeviceId) {
        let (cpu, memory, disk) = &snapshot.parts;
        let group = tree.group(cpu);
        self.cpu_time += group.usage.cpu_time;
        self.processes += group.exited;
        self.minor_faults += tree.group(memory).usage.minor_faults;
        self.written_back += tree.group(disk).usage.by_class.write_back.written_bytes;
        if let Some(row) = disk.devices.iter().find(|row| row.id == device) {
            for class in DiskClass::ALL {
                *self.device.entry(class).or_default() += row.by_class.get(class).written_bytes;
            }
        }
    }
}

#[test]
fn a_build_grouped_by_its_tree_is_what_the_kernel_says_of_it() {
    const TEST: &str = "a_build_grouped_by_its_tree";
    for tool in ["make", "cc"] {
        if Command::new(tool).arg("--version").output().is_err() {
            return skip(TEST, &format!("there is no {tool}"));
        }
    }
    let Some(files) = directory_on_disk(TEST) else { return };
    let device = LoopDevice::new(files.path(), 96 << 20);
    let Some(volume) = Mounted::new(TEST, &device.path(), "ext4", &["-q"]) else { return };
    let (major, minor) = device_id(device.name());
    let id = DiskDeviceId { major, minor };
    write_sources(volume.path());
    let before = settle(device.name());

    let kernel = Kernel::read().unwrap();
    let probes = (
        CpuProbe::builder().load_on(&kernel).unwrap(),
        MemProbe::builder().load_on(&kernel).unwrap(),
        DiskProbe::builder().load_on(&kernel).unwrap(),
    );
    drop(kernel);
    let mut probe = Joined::new(probes).unwrap();
    let before_build = rusage_of_children();
    // begins when the tree is known
    let mut build = Command::new("sh")
        .args(["-c", "read begin && exec make -s -j3"])
        .current_dir(volume.path())
        .env("TMPDIR", volume.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut tree = ProcessTree::of(build.id());
    let mut sums = Sums::default();
    sums.add(&mut tree, &probe.reset().unwrap(), id);
    build.stdin.take().unwrap().write_all(b"begin\n").unwrap();
    let status = loop {
        sleep(Duration::from_millis(200));
        sums.add(&mut tree, &probe.reset().unwrap(), id);
        if let Some(status) = build.try_wait().unwrap() {
            break status;
        }
    };
    assert!(status.success());
    let after_build = rusage_of_children();
    let spent = Duration::from_nanos(after_build.cpu_ns - before_build.cpu_ns);
    let faults = after_build.minor_faults - before_build.minor_faults;
    // What it left dirty is written by nobody of it. A release that this machine hides is
    // told two seconds later.
    let truth = settle(device.name()).since(&before);
    sleep(Duration::from_millis(2500));
    let last = probe.reset().unwrap();
    sums.add(&mut tree, &last, id);

    let off = sums.cpu_time.as_secs_f64() / spent.as_secs_f64() - 1.0;
    println!(
        "{} processes; CPU time {:?}, by rusage {spent:?} ({:+.3} %); minor faults {}, by rusage \
         {faults}; {:?}",
        sums.processes,
        sums.cpu_time,
        off * 100.0,
        sums.minor_faults,
        last.losses(),
    );
    // make, and for each file a shell or cc itself, the compiler and the assembler
    assert!(sums.processes > 3 * FILES, "{}", sums.processes);
    assert!(off.abs() < 0.005, "{:?}, by rusage {spent:?}", sums.cpu_time);
    assert!(sums.minor_faults.abs_diff(faults) < faults / 200, "{}, {faults}", sums.minor_faults);

    // Of files, all that reached the device is the tree's; the rest is the file system's own.
    println!(
        "{} bytes of files written, on the device {:?}; by diskstats {}; objects {}",
        sums.written_back,
        sums.device,
        truth.written_bytes,
        FILES * DATA_BYTES
    );
    assert!(sums.written_back >= (FILES * DATA_BYTES) as u64);
    let on_device = sums.device[&DiskClass::WriteBack];
    assert!(sums.written_back.abs_diff(on_device) <= on_device / 200);
    // some completions are hidden on some machines, and come late
    let all = sums.device.values().sum::<u64>();
    assert!(all.abs_diff(truth.written_bytes) <= truth.written_bytes / 200, "{all}");
}
