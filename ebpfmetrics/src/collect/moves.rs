//! Moves between cgroups, as the kernel side counts them: see `bpf/process/moves.h`.

use std::collections::HashMap;

use super::{engine::changes, walk::Walked};
use crate::{
    error::Result,
    object::Object,
    process::{ProcessId, ThreadId},
    record::{ProcessKey, ProcessPartKey, ProcessPartRecord, process_cgroup, process_change},
};

/// Number of processes that have moved, and of their cgroups.
pub(super) const MAX_MOVED: u32 = 16_384;

/// A place that the kernel side stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// Where the process was before its first move.
    First,
    /// With the filter of a cgroup: any cgroup outside.
    Outside,
    /// A cgroup by its id.
    Cgroup(u64),
}

impl Place {
    fn from_kernel(id: u64) -> Self {
        match id {
            u64::MAX => Self::Outside,
            _ if id == u64::from(process_cgroup::FIRST) => Self::First,
            id => Self::Cgroup(id),
        }
    }
}

/// What the kernel side knows of processes that have moved.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// What threads used in the cgroups that they left, less what they had used before they
    /// entered. Modulo 2^64.
    pub(super) parts: HashMap<ProcessId, Vec<(Place, ProcessPartRecord)>>,
    /// By pid and start time, or by those of a thread.
    places: HashMap<(u32, u64), Place>,
}

impl Moves {
    /// Reads it after a walk: what it says of the places of threads and of their usage
    /// belongs together. `has_places`: the kernel side knows places from the beginning.
    pub(super) fn read(base: &Object, has_places: bool) -> Result<Self> {
        /// A move takes less than a read.
        const TRIES: u32 = 10;
        let mut moves = Self::default();
        for _ in 0..TRIES {
            let done = changes(base, process_change::MOVE_DONE)?;
            let begun = changes(base, process_change::MOVE_BEGUN)?;
            if begun == 0 && !has_places {
                break;
            }
            moves = Self::default();
            let places: Vec<(ProcessKey, u64)> = base.lookup_batch("cgroup_places")?;
            let parts: Vec<(ProcessPartKey, ProcessPartRecord)> =
                base.lookup_batch("cgroup_parts")?;
            for (key, place) in places {
                moves.places.insert((key.tgid, key.start_ns), Place::from_kernel(place));
            }
            for (key, part) in parts {
                let place = Place::from_kernel(key.cgroup_id);
                moves.parts.entry(key.process.id()).or_default().push((place, part));
            }
            if done == begun && changes(base, process_change::MOVE_BEGUN)? == begun {
                break;
            }
        }
        Ok(moves)
    }

    pub(super) fn process(&self, id: ProcessId) -> Option<Place> {
        self.places.get(&(id.pid, id.start_time_ns)).copied()
    }

    pub(super) fn thread(&self, id: ThreadId) -> Option<Place> {
        self.places.get(&(id.tid, id.start_time_ns)).copied()
    }

    /// Whether the process has moved, as far as is known.
    pub(super) fn has(&self, id: ProcessId) -> bool {
        self.parts.contains_key(&id)
    }

    /// Deletes the parts of processes that have been released and have no entry in the table.
    pub(super) fn delete_ended(
        &self,
        base: &Object,
        is_known: impl Fn(ProcessId) -> bool,
    ) -> Result<()> {
        let ended = |id: &&ProcessId| self.process(**id).is_none() && !is_known(**id);
        let keys = self.parts.keys().filter(ended).flat_map(|id| {
            self.parts[id].iter().map(|(place, _)| ProcessPartKey {
                process: (*id).into(),
                cgroup_id: match *place {
                    Place::First => u64::from(process_cgroup::FIRST),
                    Place::Outside => u64::MAX,
                    Place::Cgroup(id) => id,
                },
            })
        });
        let keys: Vec<_> = keys.collect();
        base.delete_batch("cgroup_parts", &keys)
    }
}

/// Tells the kernel side which threads are in another cgroup than their process when the set is
/// loaded; whether there are any.
pub(super) fn place_threads(base: &Object, walked: &Walked) -> Result<bool> {
    let mut leader = (ProcessId::default(), 0);
    let mut places = Vec::new();
    let key = |tgid, start_ns| ProcessKey { start_ns, tgid, padding: 0 };
    for task in &walked.tasks {
        if task.is_leader {
            leader = (task.process, task.cgroup_id);
        } else if task.process == leader.0 && task.cgroup_id != leader.1 {
            places.push((key(task.thread.tid, task.thread.start_time_ns), task.cgroup_id));
            places.push((leader.0.into(), u64::from(process_cgroup::FIRST)));
        }
    }
    places.truncate(MAX_MOVED as usize);
    base.update_batch("cgroup_places", &places)?;
    Ok(!places.is_empty())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::MetadataExt as _,
        path::{Path, PathBuf},
        process::{Child, Command},
    };

    use crate::{
        collect::{
            collector::Read,
            engine::{Engine, Options},
        },
        kernel::Kernel,
        probes::cpu::CpuProbeBuilder,
    };

    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    struct Group(PathBuf);

    impl Drop for Group {
        fn drop(&mut self) {
            let _ = fs::remove_dir(&self.0);
        }
    }

    #[test]
    fn moves_that_find_no_room_are_counted_and_divide_nothing() {
        let kernel = Kernel::read().unwrap();
        let options = Options { max_moved: 2, ..Options::default() };
        let mut engine = Engine::load(options, &kernel).unwrap();
        let cpu = engine.add::<crate::probes::cpu::Cpu>(CpuProbeBuilder::default(), &kernel);
        let cpu = cpu.unwrap();
        let mounted = crate::collect::cgroups::mounted(&engine);
        let group = Group(mounted.join(format!("ebpfmetrics-full-{}", std::process::id())));
        fs::create_dir(&group.0).unwrap();
        let id = fs::metadata(&group.0).unwrap().ino();
        let sleepers: Vec<_> =
            (0..4).map(|_| Sleeper(Command::new("sleep").arg("60").spawn().unwrap())).collect();
        engine.snapshot(Read::Snapshot).unwrap();
        let into = |group: &Path, sleeper: &Sleeper| {
            fs::write(group.join("cgroup.procs"), sleeper.0.id().to_string()).unwrap();
        };
        sleepers.iter().for_each(|sleeper| into(&group.0, sleeper));
        // one process fills the table of parts
        engine.snapshot(Read::Snapshot).unwrap();
        let snapshot = engine.snapshot(Read::Snapshot).unwrap();
        assert!(snapshot.losses.get("cgroup_move_missing") >= Some(3));
        for sleeper in &sleepers {
            let row = snapshot.process(sleeper.0.id()).unwrap();
            assert_eq!(row.info.cgroup_id, Some(id));
            let parts = row.other_cgroups(cpu).iter();
            assert!(
                parts.map(|part| part.total.cpu_time).sum::<std::time::Duration>()
                    <= row.total(cpu).cpu_time
            );
        }
        let divided = |sleeper: &&Sleeper| {
            !snapshot.process(sleeper.0.id()).unwrap().other_cgroups(cpu).is_empty()
        };
        assert!(sleepers.iter().filter(divided).count() <= 1);
        drop(sleepers);
    }
}
