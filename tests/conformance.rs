//! The library's own probes pass what it asks of everybody's.

use std::time::{Duration, Instant};

use ebpfmetrics::{CpuProbe, DiskProbe, MemProbe, SlabProbe, kit::conformance};

fn spin() {
    let end = Instant::now() + Duration::from_millis(20);
    while Instant::now() < end {}
}

fn touch() {
    // larger than what the allocator keeps
    let pages = std::hint::black_box(vec![1_u8; 40 << 20]);
    drop(pages);
}

#[test]
fn cpu() {
    let load = |kernel: &_| CpuProbe::builder().load_on(kernel);
    conformance::check(load, spin, |usage| usage.cpu_time.as_nanos() as u64);
}

#[test]
fn mem() {
    let load = |kernel: &_| MemProbe::builder().load_on(kernel);
    conformance::check(load, touch, |usage| usage.minor_faults);
}

#[test]
fn slab() {
    let load = |kernel: &_| SlabProbe::builder().load_on(kernel);
    let pipes = || (0..100).for_each(|_| drop(std::io::pipe().expect("descriptors")));
    conformance::check(load, pipes, |usage| usage.allocations);
}

#[test]
fn disk() {
    use std::{io::Write as _, path::Path};

    // the machines have a disk for this; elsewhere where the tests are built
    let volume = Path::new("/mnt/vol");
    let directory = if volume.is_dir() { volume } else { env!("CARGO_TARGET_TMPDIR").as_ref() };
    let write = || {
        let mut file = tempfile::tempfile_in(directory).expect("a file on a disk");
        file.write_all(&vec![1; 1 << 20]).and_then(|()| file.sync_all()).expect("room on it");
    };
    let load = |kernel: &_| DiskProbe::builder().load_on(kernel);
    conformance::check(load, write, |usage| usage.total.written_bytes);
}
