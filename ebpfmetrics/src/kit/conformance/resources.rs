//! What a probe takes, and leaves behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use super::{Check, UsageOf, bystander::Bystander, read, until};
use crate::{
    ProbeSet,
    kit::ProbeBuilder,
    object::{map_ids, program_ids},
    probe::Probe,
};

impl<B: ProbeBuilder, N: Fn() -> B, F: Fn(&UsageOf<B>) -> u64> Check<N, F> {
    /// A probe that is dropped takes its programs, maps and descriptors with it, and reads
    /// leave none behind.
    pub(super) fn leaves_nothing(&self) {
        drop(self.load()); // what the first use in a process takes is not the probe's
        let (before, threads) = (descriptors(), threads_of_this());
        let mut probe = self.load();
        let (programs, maps) = (ids("prog_id:"), ids("map_id:"));
        let health = read(probe.health());
        assert!(!programs.is_empty() && !maps.is_empty(), "no programs or no maps are loaded");
        assert_eq!(health.programs, programs.len(), "programs in health, and loaded");
        let cost = read(probe.cost()).programs.len();
        assert_eq!(cost, programs.len(), "programs in cost, and loaded");
        assert!(health.map_bytes > 0, "maps take no memory");
        let listed = programs.is_subset(&program_ids()) && maps.is_subset(&map_ids());
        assert!(listed, "the kernel does not list what is loaded: is CAP_SYS_ADMIN missing?");

        read(probe.snapshot());
        let during = descriptors();
        for _ in 0..10 {
            read(probe.snapshot());
            read(probe.reset());
        }
        assert_eq!(descriptors(), during, "a read leaves descriptors open");
        assert_eq!(threads_of_this(), threads, "a probe starts threads");
        drop(probe);
        assert_eq!(descriptors(), before, "a dropped probe leaves descriptors open");
        are_freed(&programs, &maps);

        let mut set = read(ProbeSet::builder().build_on(&self.kernel));
        read(set.add_on(Bystander::default(), &self.kernel));
        let (before, old) = (descriptors().len(), (ids("prog_id:"), ids("map_id:")));
        let probe = read(set.add_on((self.builder)(), &self.kernel));
        let (programs, maps) = (ids("prog_id:"), ids("map_id:"));
        read(set.reset());
        read(set.remove(probe));
        assert_eq!(descriptors().len(), before, "a removed probe leaves descriptors open");
        let (left, left_maps) = (ids("prog_id:"), ids("map_id:"));
        assert_eq!((left.len(), left_maps.len()), (old.0.len(), old.1.len()));
        are_freed(&(&programs - &left), &(&maps - &left_maps));
    }
}

/// They are freed after an RCU grace period.
fn are_freed(programs: &BTreeSet<u32>, maps: &BTreeSet<u32>) {
    until("a dropped probe leaves programs or maps in the kernel", || {
        let gone = programs.is_disjoint(&program_ids()) && maps.is_disjoint(&map_ids());
        gone.then_some(())
    });
}

/// What this process has open, by number.
fn descriptors() -> BTreeMap<u32, String> {
    let target = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        // that of the listing itself is closed by now
        Some((number, fs::read_link(entry.path()).ok()?.display().to_string()))
    };
    let entries: Vec<_> = list("/proc/self/fd");
    entries.into_iter().filter_map(target).collect()
}

fn threads_of_this() -> usize {
    list("/proc/self/task").len()
}

/// The ids of the programs or maps that this process has open.
fn ids(field: &str) -> BTreeSet<u32> {
    let infos = list("/proc/self/fdinfo").into_iter();
    let infos = infos.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let id = |info: String| info.lines().find_map(|l| l.strip_prefix(field)?.trim().parse().ok());
    infos.filter_map(id).collect()
}

fn list(directory: impl AsRef<Path>) -> Vec<fs::DirEntry> {
    fs::read_dir(directory).expect("/proc is mounted").flatten().collect()
}
