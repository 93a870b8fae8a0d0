//! The built-in probes pass what the library demands of every probe.

use std::ops::RangeInclusive;

use ebpfmetrics::{CpuProbe, DiskProbe, MemProbe, SlabProbe, kit::conformance};
use ebpfmetrics_suite::hides_first_process;
use procfs::process::Process;
use rustix::time::{ClockId, clock_gettime};

fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// What was counted, and what the process does beside.
fn with(rest: u64, counted: u64) -> RangeInclusive<u64> {
    counted..=counted + rest
}

fn spin() -> RangeInclusive<u64> {
    let begin = cpu_ns();
    while cpu_ns() < begin + 100_000_000 {}
    // emulated CPUs take turns of some 10 ms, during which the clock goes on
    with(60_000_000, cpu_ns() - begin)
}

fn faults() -> u64 {
    Process::myself().and_then(|me| me.stat()).expect("/proc is there").minflt
}

fn touch() -> RangeInclusive<u64> {
    let begin = faults();
    // larger than what the allocator keeps
    let pages = std::hint::black_box(vec![1_u8; 40 << 20]);
    drop(pages);
    with(100, faults() - begin)
}

#[test]
fn cpu() {
    conformance::check(CpuProbe::builder, spin, |usage| usage.cpu_time.as_nanos() as u64);
}

#[test]
fn mem() {
    conformance::check(MemProbe::builder, touch, |usage| usage.minor_faults);
}

#[test]
fn slab() {
    let pipes = || {
        (0..100).for_each(|_| drop(std::io::pipe().expect("descriptors")));
        300..=3000 // at least an inode and two files each
    };
    conformance::check(SlabProbe::builder, pipes, |usage| usage.allocations);
}

#[test]
fn disk() {
    use std::{io::Write as _, path::Path};

    // the machines have a disk for this; elsewhere where the tests are built
    let volume = Path::new("/mnt/vol");
    let directory = if volume.is_dir() { volume } else { env!("CARGO_TARGET_TMPDIR").as_ref() };
    // A machine that hides its first process hides completions that interrupt it: one in some
    // thousands. There a quarter of the eight writes may be missing.
    const BYTES: u64 = 1 << 20;
    let least = if hides_first_process() { BYTES * 3 / 4 } else { BYTES };
    let write = || {
        let mut file = tempfile::tempfile_in(directory).expect("a file on a disk");
        for _ in 0..8 {
            let piece = vec![1; BYTES as usize / 8];
            file.write_all(&piece).and_then(|()| file.sync_all()).expect("room on it");
        }
        least..=BYTES + (1 << 18) // and metadata
    };
    conformance::check(DiskProbe::builder, write, |usage| usage.total.written_bytes);
}
