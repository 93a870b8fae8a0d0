//! A real build, measured by its tree. Runs if there is a compiler.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use ebpfmetrics::{
    CpuProbe, CpuUsage, DiskProbe, DiskUsage, Filter, Kernel, MemProbe, MemUsage, Probe as _,
    ProbeSet, Snapshot,
    cpu::CpuSystem,
    disk::{DiskByClass, DiskDeviceId, DiskSystem},
    group::ProcessTree,
    mem::MemSystem,
    snapshot::Handle,
};
use ebpfmetrics_suite::{
    LoopDevice, Mounted, device_id, directory_on_disk, rusage_of_children, settle, skip,
};

const FILES: usize = 40;
const DATA_BYTES: usize = 256 << 10;

/// Writes sources that keep a compiler busy and result in large objects.
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

/// The probes of the set, and what they measured of the build, added up over the windows.
struct Measured {
    cpu: Handle<CpuUsage, CpuSystem>,
    mem: Handle<MemUsage, MemSystem>,
    disk: Handle<DiskUsage, DiskSystem>,
    tree: ProcessTree,
    exited: usize,
    cpu_time: Duration,
    minor_faults: u64,
    dirtied_bytes: u64,
    /// I/O of the build, on all devices.
    io: DiskByClass,
    /// I/O of all processes on the device of the build.
    device: DiskByClass,
}

impl Measured {
    fn add(&mut self, snapshot: &Snapshot, device: DiskDeviceId) {
        let group = self.tree.group(&snapshot.of(self.cpu));
        self.exited += group.exited;
        self.cpu_time += group.usage.cpu_time;
        self.minor_faults += self.tree.group(&snapshot.of(self.mem)).usage.minor_faults;
        let io = self.tree.group(&snapshot.of(self.disk)).usage;
        self.dirtied_bytes += io.dirtied_bytes.unwrap_or_default();
        self.io += &io.by_class;
        if let Some(row) = snapshot[self.disk].devices.iter().find(|row| row.id == device) {
            self.device += &row.by_class;
        }
    }
}

/// Asserts that two figures differ by 0.5 % at most.
#[track_caller]
fn assert_near(what: &str, ours: u64, truth: u64) {
    assert!(ours.abs_diff(truth) <= truth / 200, "{what}: {ours}, not {truth}");
}

#[test]
fn a_build_measured_by_its_tree_agrees_with_the_kernel() {
    const TEST: &str = "a_build_measured_by_its_tree";
    for tool in ["make", "cc"] {
        if Command::new(tool).arg("--version").output().is_err() {
            return skip(TEST, &format!("there is no {tool}"));
        }
    }
    let Some(files) = directory_on_disk(TEST) else { return };
    let device = LoopDevice::new(files.path(), 96 << 20);
    let Some(volume) = Mounted::ext4(TEST, &device.path()) else { return };
    let (major, minor) = device_id(device.name());
    let id = DiskDeviceId { major, minor };
    write_sources(volume.path());
    let before = settle(device.name());

    // Every descendant of this process is measured from its start. The tree of the build is
    // only a part of them.
    let kernel = Kernel::read().unwrap();
    let filter = Filter::tree(std::process::id());
    let mut probes = ProbeSet::builder().filter(filter).build_on(&kernel).unwrap();
    let cpu = probes.add_on(CpuProbe::builder(), &kernel).unwrap();
    let mem = probes.add_on(MemProbe::builder(), &kernel).unwrap();
    let disk = probes.add_on(DiskProbe::builder(), &kernel).unwrap();
    drop(kernel);
    probes.reset().unwrap();
    let before_build = rusage_of_children();
    let mut build = Command::new("sh")
        .args(["-c", "read begin && exec make -s -j3"])
        .current_dir(volume.path())
        .env("TMPDIR", volume.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut measured = Measured {
        cpu,
        mem,
        disk,
        tree: ProcessTree::of(build.id()),
        exited: 0,
        cpu_time: Duration::ZERO,
        minor_faults: 0,
        dirtied_bytes: 0,
        io: DiskByClass::default(),
        device: DiskByClass::default(),
    };
    build.stdin.take().unwrap().write_all(b"begin\n").unwrap();
    let status = loop {
        sleep(Duration::from_millis(200));
        measured.add(&probes.reset().unwrap(), id);
        if let Some(status) = build.try_wait().unwrap() {
            break status;
        }
    };
    assert!(status.success());
    let after_build = rusage_of_children();
    let cpu_ns = after_build.cpu_ns - before_build.cpu_ns;
    let faults = after_build.minor_faults - before_build.minor_faults;
    let dirtied = after_build.written_bytes - before_build.written_bytes;
    // Kernel threads write the remaining pages, and the build is charged. If the machine
    // hides a release, the row comes two seconds later.
    settle(device.name());
    sleep(Duration::from_millis(2500));
    let truth = settle(device.name()).since(&before);
    let last = probes.reset().unwrap();
    measured.add(&last, id);

    let (io, on_device) = (measured.io, measured.device);
    println!(
        "{} processes; CPU time {:?}, rusage {:?}; minor faults {}, rusage {faults}; dirtied \
         bytes {}, rusage {dirtied}; written back {}, on the device {}; diskstats {}; objects {}; \
         {:?}",
        measured.exited,
        measured.cpu_time,
        Duration::from_nanos(cpu_ns),
        measured.minor_faults,
        measured.dirtied_bytes,
        io.write_back.written_bytes,
        on_device.write_back.written_bytes,
        truth.written_bytes,
        FILES * DATA_BYTES,
        last.losses,
    );
    // make, and for each file cc or a shell, the compiler and the assembler
    assert!(measured.exited > 3 * FILES, "{}", measured.exited);
    assert_near("CPU time", measured.cpu_time.as_nanos() as u64, cpu_ns);
    assert_near("minor faults", measured.minor_faults, faults);
    assert_near("dirtied bytes", measured.dirtied_bytes, dirtied);

    // All file contents on the device are from the build; the rest is metadata and journal.
    assert!(io.write_back.written_bytes >= (FILES * DATA_BYTES) as u64, "{io:?}");
    assert_near("written", io.write_back.written_bytes, on_device.write_back.written_bytes);
    let all = on_device.iter().map(|(_, io)| io.written_bytes).sum();
    assert_near("device", all, truth.written_bytes);
}
