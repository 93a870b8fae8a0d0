//! Paths of cgroups that have been removed: the kernel side stores each of them at its removal.

use std::{
    collections::{HashMap, VecDeque},
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
};

use super::engine::{Engine, changes};
use crate::{
    error::Result,
    object::Object,
    process::Cgroups,
    record::{ProcessCgroupPathRecord, process_change},
};

/// Number of paths that are kept, in the kernel from read to read and in the set.
pub(super) const MAX_REMOVED: u32 = 4096;

const MAP: &str = "removed_cgroups";

/// The paths of the cgroups that were removed last.
#[derive(Debug)]
pub(super) struct RemovedCgroups {
    /// `None` if several cgroups had the id.
    paths: HashMap<u64, Option<PathBuf>>,
    /// The oldest first.
    order: VecDeque<u64>,
    max: usize,
    /// The kernel's count of removals at the last read.
    removals: u64,
    in_window: usize,
    forgotten: u64,
}

impl RemovedCgroups {
    pub(super) fn new(max: usize) -> Self {
        Self {
            paths: HashMap::new(),
            order: VecDeque::new(),
            max,
            removals: 0,
            in_window: 0,
            forgotten: 0,
        }
    }

    /// Takes in what the kernel has stored since the last read.
    pub(super) fn read(&mut self, object: &Object) -> Result<()> {
        let removals = changes(object, process_change::CGROUP_REMOVED)?;
        if removals != self.removals {
            let removed: Vec<(u64, ProcessCgroupPathRecord)> =
                object.lookup_and_delete_batch(MAP)?;
            removed.iter().for_each(|(id, record)| self.add(*id, record.path()));
            self.removals = removals;
        }
        Ok(())
    }

    fn add(&mut self, id: u64, path: PathBuf) {
        self.in_window += 1;
        if let Some(known) = self.paths.get_mut(&id) {
            // the hierarchy was mounted again, and its ids start again
            if known.as_ref() != Some(&path) {
                *known = None;
            }
            return;
        }
        self.paths.insert(id, Some(path));
        self.order.push_back(id);
        if self.order.len() > self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.paths.remove(&oldest);
            self.forgotten += u64::from(self.in_window > self.max);
        }
    }

    /// Paths of this window that found no room.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    pub(super) fn end_window(&mut self) {
        (self.in_window, self.forgotten) = (0, 0);
    }
}

impl Engine {
    /// The cgroups that exist, and those that were removed.
    pub(crate) fn cgroups(&self) -> Result<Cgroups> {
        let mut cgroups = Cgroups::of(self.cgroup_hierarchy());
        for (&id, path) in &self.removed_cgroups.paths {
            cgroups.add_removed(id, path.as_deref());
        }
        // After the directories: what is removed meanwhile is in either.
        let removed: Vec<(u64, ProcessCgroupPathRecord)> = self.base.lookup_batch(MAP)?;
        for (id, record) in removed {
            cgroups.add_removed(id, Some(&record.path()));
        }
        Ok(cgroups)
    }
}

impl ProcessCgroupPathRecord {
    fn path(&self) -> PathBuf {
        let length = (self.length as usize).min(self.bytes.len());
        OsStr::from_bytes(&self.bytes[..length]).into()
    }
}

/// Directory of a hierarchy in which cgroups can be made.
#[cfg(test)]
pub(super) fn mounted(engine: &Engine) -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let hierarchy = engine.cgroup_hierarchy().to_string();
    let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = mounts.find(|mount| match mount[2] {
        "cgroup2" => hierarchy == "unified",
        "cgroup" => mount[3].split(',').any(|option| option == hierarchy),
        _ => false,
    });
    mount.expect("a mounted hierarchy")[1].into()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::{
        collect::{
            collector::Read,
            engine::{Options, PROCESS},
        },
        kernel::Kernel,
    };

    #[test]
    fn the_last_paths_are_kept_and_an_ambiguous_id_has_none() {
        let mut removed = RemovedCgroups::new(2);
        let path = |removed: &RemovedCgroups, id| removed.paths.get(&id).cloned().flatten();
        removed.add(1, "/a".into());
        removed.end_window();
        removed.add(2, "/b".into());
        removed.add(3, "/c".into());
        // the one of the window before makes room
        assert_eq!((path(&removed, 1), removed.forgotten()), (None, 0));
        removed.add(4, "/d".into());
        assert_eq!((path(&removed, 2), removed.forgotten()), (None, 1));
        removed.add(4, "/d".into());
        assert_eq!(path(&removed, 4), Some("/d".into()));
        removed.add(4, "/other".into());
        assert_eq!((path(&removed, 4), path(&removed, 3)), (None, Some("/c".into())));
        removed.end_window();
        assert_eq!(removed.forgotten(), 0);
    }

    #[test]
    fn cgroups_that_find_no_room_are_counted() {
        let kernel = Kernel::read().unwrap();
        let options = Options { max_removed: 3, ..Options::default() };
        let mut engine = Engine::load(options, &kernel).unwrap();
        let mounted = mounted(&engine);
        let name = |index| format!("ebpfmetrics-removed-{}-{index}", std::process::id());
        let make = |index: i32| {
            let directory = mounted.join(name(index));
            fs::create_dir(&directory).unwrap();
            let id = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&directory).unwrap());
            fs::remove_dir(&directory).unwrap();
            id
        };
        let missing = |engine: &mut Engine| {
            let losses = engine.snapshot(Read::Snapshot).unwrap().losses;
            losses
                .iter()
                .find(|it| it.probe == PROCESS && it.cause == "cgroup_path_missing")
                .unwrap()
                .count
        };
        let ids: Vec<u64> = (0..5).map(make).collect();
        let known = |engine: &Engine, ids: &[u64]| {
            let cgroups = engine.cgroups().unwrap();
            ids.iter().filter(|id| cgroups.path(**id).is_some()).count()
        };
        // of others on this machine too, perhaps
        assert!(known(&engine, &ids) <= 3);
        assert!(missing(&mut engine) >= 2);
        // those that are read make room in the kernel, and the older ones go
        let more: Vec<u64> = (5..7).map(make).collect();
        assert!(missing(&mut engine) >= 4);
        assert!(known(&engine, &ids) + known(&engine, &more) <= 3);
        engine.snapshot(Read::Reset).unwrap();
        assert_eq!(missing(&mut engine), 0);
        let path = Path::new("/").join(name(9));
        let id = make(9);
        assert_eq!(engine.cgroups().unwrap().path(id), Some(&*path));
        engine.snapshot(Read::Reset).unwrap();
        assert_eq!(engine.cgroups().unwrap().path(id), Some(&*path));
    }
}
