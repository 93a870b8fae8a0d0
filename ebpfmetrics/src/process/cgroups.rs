use std::{
    collections::HashMap,
    ffi::OsString,
    fmt, fs, io,
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

/// A hierarchy of cgroups.
///
/// A process is in one cgroup of each hierarchy. The id of a cgroup is valid only within
/// its hierarchy.
///
/// Probes use [`mounted`](Self::mounted) unless another hierarchy is set. On hybrid hosts, which
/// have both versions of cgroups, this is the unified hierarchy. systemd puts its processes there,
/// but some container runtimes do not. If the unified hierarchy is empty, choose a controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum CgroupHierarchy {
    /// The hierarchy of cgroup v2.
    #[default]
    Unified,
    /// The cgroup v1 hierarchy of a controller, such as `memory` or `cpuacct`. Several
    /// controllers can share one. `io` is another name of `blkio`.
    ///
    /// Loading fails with [`InvalidOption`](crate::ErrorKind::InvalidOption) if no v1 hierarchy
    /// has the controller.
    Controller(String),
}

impl CgroupHierarchy {
    /// Controllers in the order of [`mounted`](Self::mounted): first those that container
    /// runtimes always use.
    const CONTROLLERS: [&str; 8] =
        ["memory", "cpu", "pids", "cpuacct", "blkio", "freezer", "devices", "cpuset"];

    /// Hierarchy of a cgroup v1 controller, by its mount option. `io`, the name in
    /// cgroup v2, means `blkio`.
    pub fn controller(name: impl Into<String>) -> Self {
        Self::Controller(in_v1(&name.into()).to_owned())
    }

    /// Unified hierarchy if it is mounted. Otherwise the first mounted one of `memory`,
    /// `cpu`, `pids`, `cpuacct`, `blkio`, `freezer`, `devices` and `cpuset`. If there is
    /// none, the unified hierarchy; its ids then have no paths.
    pub fn mounted() -> Self {
        let mounts = Mount::read();
        let controllers = Self::CONTROLLERS.iter().map(|&name| Self::controller(name));
        let mut all = std::iter::once(Self::Unified).chain(controllers);
        all.find(|this| mounts.iter().any(|mount| mount.is_of(this))).unwrap_or_default()
    }

    /// Directory of a cgroup in the file system, by its path as in `/proc/PID/cgroup` and
    /// [`Cgroups::path`]. `None` if the hierarchy is not mounted, or only another part of it.
    pub fn directory(&self, cgroup: &Path) -> Option<PathBuf> {
        let mounts = Mount::read().into_iter().filter(|mount| mount.is_of(self));
        let mount = mounts.min_by_key(|mount| mount.root.as_os_str().len())?;
        Some(mount.directory.join(cgroup.strip_prefix(&mount.root).ok()?))
    }

    /// Enumerator of the controller in the kernel's `enum cgroup_subsys_id`.
    pub(crate) fn enumerator(&self) -> Option<String> {
        match self {
            Self::Unified => None,
            Self::Controller(name) if in_v1(name) == "blkio" => Some("io_cgrp_id".into()),
            Self::Controller(name) => Some(format!("{name}_cgrp_id")),
        }
    }

    /// Whether tasks have a cgroup in this hierarchy. A controller that no v1 hierarchy has is
    /// part of the unified one, with other ids.
    pub(crate) fn exists(&self) -> bool {
        let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        self.is_in(&cgroups)
    }

    /// The lines are `NUMBER:CONTROLLERS:PATH`, one per hierarchy.
    fn is_in(&self, cgroups: &str) -> bool {
        let Self::Controller(name) = self else { return true };
        let mut all = cgroups.lines().filter_map(|line| line.split(':').nth(1));
        !name.is_empty() && all.any(|it| it.split(',').any(|it| it == in_v1(name)))
    }
}

/// The name of a controller in v1.
fn in_v1(name: &str) -> &str {
    match name {
        "io" => "blkio", // the only controller with another name
        name => name,
    }
}

impl fmt::Display for CgroupHierarchy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unified => "unified",
            Self::Controller(name) => name,
        })
    }
}

/// A cgroup file system in `/proc/self/mountinfo`.
struct Mount {
    /// The part of the hierarchy that is mounted.
    root: PathBuf,
    directory: PathBuf,
    unified: bool,
    options: String,
}

impl Mount {
    fn read() -> Vec<Self> {
        Self::parse_all(&fs::read("/proc/self/mountinfo").unwrap_or_default())
    }

    /// Paths can contain any byte, so the lines are not text.
    fn parse_all(lines: &[u8]) -> Vec<Self> {
        lines.split(|&byte| byte == b'\n').filter_map(Self::parse).collect()
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ');
        let (root, directory) = (fields.nth(3)?, fields.next()?);
        fields.find(|field| field == b"-")?;
        let unified = match fields.next()? {
            b"cgroup2" => true,
            b"cgroup" => false,
            _ => return None,
        };
        Some(Self {
            root: unescape(root),
            directory: unescape(directory),
            unified,
            options: String::from_utf8_lossy(fields.nth(1)?).into_owned(),
        })
    }

    fn is_of(&self, hierarchy: &CgroupHierarchy) -> bool {
        match hierarchy {
            CgroupHierarchy::Unified => self.unified,
            CgroupHierarchy::Controller(name) => {
                !self.unified && self.options.split(',').any(|option| option == in_v1(name))
            }
        }
    }
}

/// Decodes `\ooo`. The kernel writes bytes that would end a field in this way.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    loop {
        rest = match rest {
            [] => return OsString::from_vec(path).into(),
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', rest @ ..] => {
                path.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest
            }
            [byte, rest @ ..] => {
                path.push(*byte);
                rest
            }
        };
    }
}

/// Maps the cgroup ids in a snapshot to paths.
///
/// The id is the inode of the cgroup's directory. Cgroups come and go, so read them again
/// when an id is unknown. [`ProbeSet::cgroups`](crate::ProbeSet::cgroups) also has those that
/// have been removed.
///
/// ```
/// let cgroups = ebpfmetrics::process::Cgroups::read();
/// println!("{} cgroups, 1 is {:?}", cgroups.len(), cgroups.path(1));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct Cgroups {
    paths: HashMap<u64, PathBuf>,
}

impl Cgroups {
    /// Reads the default hierarchy of probes: [`CgroupHierarchy::mounted`].
    pub fn read() -> Self {
        Self::of(&CgroupHierarchy::mounted())
    }

    /// Reads the directories of a hierarchy. The result is empty if the hierarchy is not
    /// mounted.
    pub fn of(hierarchy: &CgroupHierarchy) -> Self {
        let mounts = Mount::read().into_iter().filter(|mount| mount.is_of(hierarchy));
        // A container can have several mounts of it. The shortest root shows the most.
        match mounts.min_by_key(|mount| mount.root.as_os_str().len()) {
            Some(mount) => Self::below(&mount),
            None => Self::default(),
        }
    }

    fn below(mount: &Mount) -> Self {
        let mut cgroups = Self::default();
        let mut open = vec![mount.directory.clone()];
        while let Some(directory) = open.pop() {
            // A cgroup can be removed while it is read.
            let _ = cgroups.add(mount, &directory, &mut open);
        }
        cgroups
    }

    /// Adds one directory and queues those in it. No directory stays open, so the depth of
    /// the hierarchy is not limited by the number of open files.
    fn add(&mut self, mount: &Mount, directory: &Path, open: &mut Vec<PathBuf>) -> io::Result<()> {
        let inode = fs::metadata(directory)?.ino();
        let below = directory.strip_prefix(&mount.directory).unwrap_or(directory);
        self.paths.insert(inode, mount.root.join(below));
        let entries = fs::read_dir(directory)?.flatten();
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        open.extend(directories.map(|entry| entry.path()));
        Ok(())
    }

    /// Adds a cgroup that has been removed; its path may not be known. It may also still be
    /// here, if it was removed just now. A different path means that it was renamed just
    /// before, or that its id is in use again: then the path is not known.
    pub(crate) fn add_removed(&mut self, id: u64, path: Option<&Path>) {
        match (self.paths.get(&id), path) {
            (None, Some(path)) => drop(self.paths.insert(id, path.to_owned())),
            (Some(known), path) if path != Some(known) => drop(self.paths.remove(&id)),
            _ => {}
        }
    }

    /// Path of a cgroup below the root of its hierarchy, as in `/proc/PID/cgroup`.
    pub fn path(&self, id: u64) -> Option<&Path> {
        self.paths.get(&id).map(PathBuf::as_path)
    }

    /// Id of the cgroup with this path, as in `/proc/PID/cgroup`.
    pub fn id(&self, path: impl AsRef<Path>) -> Option<u64> {
        let path = path.as_ref();
        self.paths.iter().find(|(_, known)| *known == path).map(|(id, _)| *id)
    }

    /// Number of cgroups.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Whether there are no cgroups, because the hierarchy is not mounted.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }
}

/// Builds a map of ids to paths without reading the machine.
impl FromIterator<(u64, PathBuf)> for Cgroups {
    fn from_iter<I: IntoIterator<Item = (u64, PathBuf)>>(cgroups: I) -> Self {
        Self { paths: cgroups.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

    use super::*;

    #[test]
    fn mounts_differ_by_their_controllers() {
        let parse = |line: &str| Mount::parse(line.as_bytes()).unwrap();
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
        assert!(Mount::parse(b"22 1 0:20 / /proc rw - proc proc rw").is_none());
    }

    #[test]
    fn a_line_that_is_not_utf8_is_one_line() {
        let lines = b"1 1 0:1 / /mnt/\xff rw - ext4 /dev/sda rw\n\
            \n\
            2 1 0:2 /\xfe\\134\\011\\089 /sys/fs/cgroup rw - cgroup2 none rw\n";
        let [mount] = &Mount::parse_all(lines)[..] else { panic!("one mount") };
        assert_eq!(mount.root.as_os_str(), OsStr::from_bytes(b"/\xfe\\\t\\089"));
        assert_eq!(mount.directory, Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn io_is_blkio_in_v1() {
        assert_eq!(CgroupHierarchy::controller("io"), CgroupHierarchy::controller("blkio"));
        assert_eq!(CgroupHierarchy::controller("io").enumerator().unwrap(), "io_cgrp_id");
        let by_variant = CgroupHierarchy::Controller("io".into());
        assert_eq!(by_variant.enumerator().unwrap(), "io_cgrp_id");
        let mount = Mount::parse(b"36 30 0:32 / /mnt rw - cgroup cgroup rw,blkio").unwrap();
        assert!(mount.is_of(&by_variant));
        assert_eq!(CgroupHierarchy::controller("cpu").enumerator().unwrap(), "cpu_cgrp_id");
        assert_eq!(CgroupHierarchy::Unified.enumerator(), None);
    }

    #[test]
    fn a_controller_exists_if_a_hierarchy_of_v1_has_it() {
        let cgroups = "9:name=systemd:/x:memory:y\n7:blkio:/\n2:cpu,cpuacct:/\n0::/a\n";
        let exists = |name: &str| CgroupHierarchy::Controller(name.into()).is_in(cgroups);
        assert!(["io", "blkio", "cpu", "cpuacct"].into_iter().all(exists));
        assert!(!["memory", "pids", ""].into_iter().any(exists));
        assert!(CgroupHierarchy::Unified.is_in(""));
    }

    #[test]
    fn directories_are_read_to_any_depth() {
        let top = std::env::temp_dir().join(format!("ebpfmetrics-cgroups-{}", std::process::id()));
        let deep = (0..300).fold(top.clone(), |path, _| path.join("d"));
        fs::create_dir_all(&deep).unwrap();
        fs::create_dir_all(top.join("d/e")).unwrap();
        fs::write(top.join("file"), "").unwrap();
        let mount = Mount {
            root: "/docker".into(),
            directory: top.clone(),
            unified: true,
            options: String::new(),
        };
        let cgroups = Cgroups::below(&mount);
        let id = |path: &Path| fs::metadata(path).unwrap().ino();
        assert_eq!(cgroups.len(), 302);
        assert_eq!(cgroups.path(id(&top)), Some(Path::new("/docker/")));
        assert_eq!(cgroups.id("/docker/d/e"), Some(id(&top.join("d/e"))));
        assert!(cgroups.path(id(&deep)).is_some());
        fs::remove_dir_all(&top).unwrap();
    }

    #[test]
    fn every_cgroup_of_this_machine_has_a_path() {
        let cgroups = Cgroups::read();
        if let Some(root) = cgroups.path(1) {
            assert_eq!(cgroups.id(root), Some(1));
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn hierarchies_and_paths_round_trip_through_json() {
        for hierarchy in [CgroupHierarchy::Unified, CgroupHierarchy::controller("memory")] {
            let json = serde_json::to_string(&hierarchy).unwrap();
            assert_eq!(serde_json::from_str::<CgroupHierarchy>(&json).unwrap(), hierarchy);
        }
        let cgroups = Cgroups::from_iter([(1, "/".into()), (7, "/a".into())]);
        let json = serde_json::to_string(&cgroups).unwrap();
        assert_eq!(serde_json::from_str::<Cgroups>(&json).unwrap(), cgroups);
    }
}
