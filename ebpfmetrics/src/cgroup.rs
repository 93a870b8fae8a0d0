//! Cgroups: which hierarchy ids are of, and paths by ids.

use std::{
    collections::HashMap,
    fmt, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// A hierarchy of cgroups. A process is in one cgroup of each; an id means nothing in
/// another.
///
/// Probes that are loaded on a [`Kernel`](crate::Kernel) tell of the one that it
/// [says](crate::Kernel::cgroup_hierarchy): the [mounted](Self::mounted) unless set. On
/// hybrid hosts, which have both, that is the unified one. It is where systemd puts what
/// it starts; container runtimes with a cgroup driver of their own may leave it empty,
/// and it is for the caller to choose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CgroupHierarchy {
    /// That of cgroup v2.
    #[default]
    Unified,
    /// That which a controller is in, as `memory` or `cpuacct`; in cgroup v1 each may
    /// have one of its own.
    Controller(String),
}

impl CgroupHierarchy {
    /// Controllers in the order in which [`mounted`](Self::mounted) looks for them: what
    /// container runtimes make cgroups in first.
    const CONTROLLERS: [&str; 8] =
        ["memory", "cpu", "pids", "cpuacct", "blkio", "freezer", "devices", "cpuset"];

    /// That of a controller, by the name that it is mounted by.
    pub fn controller(name: impl Into<String>) -> Self {
        Self::Controller(name.into())
    }

    /// The unified hierarchy where it is mounted; else the first of `memory`, `cpu`,
    /// `pids`, `cpuacct`, `blkio`, `freezer`, `devices` and `cpuset` that is; else the
    /// unified one, whose ids then have no paths.
    pub fn mounted() -> Self {
        let mounts = Mount::read();
        let controllers = Self::CONTROLLERS.iter().map(|&name| Self::controller(name));
        let mut all = std::iter::once(Self::Unified).chain(controllers);
        all.find(|this| mounts.iter().any(|mount| mount.is_of(this))).unwrap_or_default()
    }

    /// The name of the controller in the kernel's `enum cgroup_subsys_id`.
    pub(crate) fn enumerator(&self) -> Option<String> {
        match self {
            Self::Unified => None,
            // the one that has another name in v1
            Self::Controller(name) if name == "blkio" => Some("io_cgrp_id".into()),
            Self::Controller(name) => Some(format!("{name}_cgrp_id")),
        }
    }
}

impl fmt::Display for CgroupHierarchy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unified => "unified",
            Self::Controller(name) => name,
        })
    }
}

/// A line of `/proc/self/mountinfo` that is a file system of cgroups.
struct Mount {
    /// What of the hierarchy is seen here.
    root: PathBuf,
    directory: PathBuf,
    unified: bool,
    options: String,
}

impl Mount {
    fn read() -> Vec<Self> {
        let lines = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        lines.lines().filter_map(Self::parse).collect()
    }

    fn parse(line: &str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let (mut mount, mut system) = (mount.split(' ').skip(3), system.split(' '));
        let unified = match system.next()? {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        // as the kernel writes what would end a field
        let path = |text: &str| PathBuf::from(text.replace("\\040", " ").replace("\\134", "\\"));
        Some(Self {
            root: path(mount.next()?),
            directory: path(mount.next()?),
            unified,
            options: system.nth(1)?.to_owned(),
        })
    }

    fn is_of(&self, hierarchy: &CgroupHierarchy) -> bool {
        match hierarchy {
            CgroupHierarchy::Unified => self.unified,
            CgroupHierarchy::Controller(name) => {
                !self.unified && self.options.split(',').any(|option| option == name)
            }
        }
    }
}

/// The paths of cgroups by the ids that rows have.
///
/// The id is the inode of the cgroup's directory. Read it again when an id is unknown:
/// cgroups come and go.
///
/// ```
/// let cgroups = ebpfmetrics::Cgroups::read();
/// println!("{} cgroups, 1 is {:?}", cgroups.len(), cgroups.path(1));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Cgroups {
    paths: HashMap<u64, PathBuf>,
}

impl Cgroups {
    /// Those of the hierarchy that probes tell of unless another is set:
    /// [`CgroupHierarchy::mounted`].
    pub fn read() -> Self {
        Self::of(&CgroupHierarchy::mounted())
    }

    /// Reads the directories of a hierarchy, wherever it is mounted; empty where it is
    /// not.
    pub fn of(hierarchy: &CgroupHierarchy) -> Self {
        let mut cgroups = Self::default();
        let mounts = Mount::read().into_iter().filter(|mount| mount.is_of(hierarchy));
        // a container may see a part of it at one place and all of it at another
        if let Some(mount) = mounts.min_by_key(|mount| mount.root.as_os_str().len()) {
            // what is removed meanwhile is no loss
            let _ = cgroups.add(&mount, &mount.directory);
        }
        cgroups
    }

    fn add(&mut self, mount: &Mount, directory: &Path) -> io::Result<()> {
        let inode = fs::metadata(directory)?.ino();
        let below = directory.strip_prefix(&mount.directory).unwrap_or(directory);
        self.paths.insert(inode, mount.root.join(below));
        for entry in fs::read_dir(directory)?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let _ = self.add(mount, &entry.path());
            }
        }
        Ok(())
    }

    /// The path of a cgroup below the root of its hierarchy, as in
    /// `/proc/PID/cgroup`.
    pub fn path(&self, id: u64) -> Option<&Path> {
        self.paths.get(&id).map(PathBuf::as_path)
    }

    /// The id of the cgroup at a path, as in `/proc/PID/cgroup`.
    pub fn id(&self, path: impl AsRef<Path>) -> Option<u64> {
        let path = path.as_ref();
        self.paths.iter().find(|(_, known)| *known == path).map(|(id, _)| *id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Whether there is none: the hierarchy is not mounted.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_told_apart_by_their_controllers() {
        let parse = |line| Mount::parse(line).unwrap();
        let unified = parse("35 30 0:31 / /a\\040b rw shared:9 - cgroup2 cgroup2 rw,nsdelegate");
        assert_eq!((unified.root.as_path(), unified.unified), (Path::new("/"), true));
        assert_eq!(unified.directory, Path::new("/a b"));
        assert!(unified.is_of(&CgroupHierarchy::Unified));
        assert!(!unified.is_of(&CgroupHierarchy::controller("memory")));
        let v1 = parse("36 30 0:32 /docker/1 /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct");
        assert_eq!(v1.root, Path::new("/docker/1"));
        assert!(!v1.is_of(&CgroupHierarchy::Unified));
        for (name, is) in [("cpu", true), ("cpuacct", true), ("cpuset", false), ("rw", true)] {
            assert_eq!(v1.is_of(&CgroupHierarchy::controller(name)), is, "{name}");
        }
        assert!(Mount::parse("22 1 0:20 / /proc rw - proc proc rw").is_none());
    }

    #[test]
    fn every_cgroup_of_this_machine_has_a_path() {
        let cgroups = Cgroups::read();
        if let Some(root) = cgroups.path(1) {
            assert_eq!(cgroups.id(root), Some(1));
        }
    }
}
