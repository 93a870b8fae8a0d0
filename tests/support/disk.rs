//! Block devices to measure on, and what the kernel says of them.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::poll;

/// A line of `/proc/diskstats`, in bytes and operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Diskstats {
    pub reads: u64,
    pub read_bytes: u64,
    /// With flushes.
    pub writes: u64,
    pub written_bytes: u64,
    pub in_flight: u64,
    pub discards: u64,
    pub discarded_bytes: u64,
}

const SECTOR: u64 = 512;

/// What the kernel has counted of a device.
pub fn diskstats(name: &str) -> Diskstats {
    let text = fs::read_to_string("/proc/diskstats").unwrap();
    let line = text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let fields = line.into_iter().find(|fields| fields[2] == name);
    let fields = fields.unwrap_or_else(|| panic!("no {name} in /proc/diskstats"));
    let figure = |index: usize| fields.get(index).map_or(0, |field| field.parse().unwrap());
    Diskstats {
        reads: figure(3),
        read_bytes: figure(5) * SECTOR,
        writes: figure(7),
        written_bytes: figure(9) * SECTOR,
        in_flight: figure(11),
        discards: figure(14),
        discarded_bytes: figure(16) * SECTOR,
    }
}

impl Diskstats {
    pub fn since(&self, before: &Self) -> Self {
        Self {
            reads: self.reads - before.reads,
            read_bytes: self.read_bytes - before.read_bytes,
            writes: self.writes - before.writes,
            written_bytes: self.written_bytes - before.written_bytes,
            in_flight: 0,
            discards: self.discards - before.discards,
            discarded_bytes: self.discarded_bytes - before.discarded_bytes,
        }
    }
}

/// Writes everything out and waits until a device stands still.
pub fn settle(name: &str) -> Diskstats {
    sync();
    let mut last = diskstats(name);
    let still = poll(Duration::from_secs(20), || {
        std::thread::sleep(Duration::from_millis(150));
        let now = diskstats(name);
        let still = now == last && now.in_flight == 0;
        last = now;
        still.then_some(now)
    });
    still.unwrap_or_else(|| panic!("{name} does not come to rest"))
}

#[expect(unsafe_code, reason = "sync(2)")]
pub fn sync() {
    // SAFETY: takes nothing and returns nothing.
    unsafe { libc::sync() };
}

/// A directory on a block device, removed at the end; `None`, told loudly, where none
/// of the usual places is on one.
pub fn directory_on_disk(test: &str) -> Option<tempfile::TempDir> {
    let places = ["/mnt/vol", env!("CARGO_MANIFEST_DIR"), "/var/tmp"];
    let on_disk = places.iter().find(|place| {
        // one that belongs to a block device itself, not to a file system of its own
        fs::metadata(place).is_ok_and(|place| {
            let (major, minor) = (libc::major(place.dev()), libc::minor(place.dev()));
            Path::new(&format!("/sys/dev/block/{major}:{minor}")).exists()
        })
    });
    let Some(place) = on_disk else {
        skip(test, "no directory on a block device among /mnt/vol, the sources and /var/tmp");
        return None;
    };
    Some(tempfile::Builder::new().prefix(".disk-test-").tempdir_in(place).unwrap())
}

/// Tells on the real standard error that a test does not run here.
pub fn skip(test: &str, reason: &str) {
    use std::io::Write as _;
    let _ = io::stderr().write_all(format!("\nNOT RUN test={test} reason={reason}\n").as_bytes());
}

/// The block device that a file lies on, by its name.
pub fn device_of(path: &Path) -> String {
    let device = fs::metadata(path).unwrap().dev();
    device_name(libc::major(device), libc::minor(device))
}

pub fn device_name(major: u32, minor: u32) -> String {
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).unwrap();
    link.file_name().unwrap().to_str().unwrap().to_owned()
}

/// The number of a device, major and minor; (0, 0) if it is gone.
pub fn device_id(name: &str) -> (u32, u32) {
    let text = fs::read_to_string(format!("/sys/class/block/{name}/dev")).unwrap_or_default();
    let parts = text.trim().split_once(':').unwrap_or_default();
    (parts.0.parse().unwrap_or(0), parts.1.parse().unwrap_or(0))
}

/// Makes a module available; false if it cannot be.
pub fn load_module(name: &str, arguments: &[&str]) -> bool {
    if Path::new("/sys/module").join(name).exists() {
        return true;
    }
    let status = Command::new("modprobe").arg(name).args(arguments).output();
    status.is_ok_and(|output| output.status.success())
}

/// A loop device of a file of its own. Nobody else uses it.
pub struct LoopDevice {
    name: String,
    /// Kept open: closed devices let go of their file.
    device: File,
    _image: tempfile::NamedTempFile,
}

impl LoopDevice {
    /// With an image in a directory, of so many bytes that are really there.
    pub fn new(directory: &Path, bytes: u64) -> Self {
        const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
        const LOOP_SET_FD: libc::c_ulong = 0x4C00;

        assert!(load_module("loop", &[]), "no loop devices");
        let image = tempfile::NamedTempFile::new_in(directory).unwrap();
        let zeros = vec![0; 1 << 20];
        for offset in (0..bytes).step_by(zeros.len()) {
            image.as_file().write_all_at(&zeros, offset).unwrap();
        }
        image.as_file().sync_all().unwrap();
        let control = File::open("/dev/loop-control").unwrap();
        for _ in 0..50 {
            let number = ioctl(&control, LOOP_CTL_GET_FREE, 0).unwrap();
            let name = format!("loop{number}");
            let path = Path::new("/dev").join(&name);
            let device = poll(Duration::from_secs(5), || {
                OpenOptions::new().read(true).write(true).open(&path).ok()
            });
            let device = device.unwrap_or_else(|| panic!("no {}", path.display()));
            // somebody may have been faster
            if ioctl(&device, LOOP_SET_FD, image.as_file().as_raw_fd() as libc::c_ulong).is_ok() {
                return Self { name, device, _image: image };
            }
        }
        panic!("no free loop device");
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        const LOOP_CLR_FD: libc::c_ulong = 0x4C01;

        let _ = ioctl(&self.device, LOOP_CLR_FD, 0);
    }
}

/// A file system on a device, mounted for as long as this lives.
pub struct Mounted {
    directory: tempfile::TempDir,
}

impl Mounted {
    /// Makes the file system; `None`, told loudly, if that cannot be done here.
    pub fn new(test: &str, device: &Path, kind: &str, options: &[&str]) -> Option<Self> {
        if !Self::can_be_made(test, kind) {
            return None;
        }
        let program = format!("mkfs.{kind}");
        let made = Command::new(&program).args(options).arg(device).output().unwrap();
        assert!(made.status.success(), "{program}: {}", String::from_utf8_lossy(&made.stderr));
        let directory = tempfile::tempdir().unwrap();
        match mount(device, directory.path(), kind) {
            Ok(()) => Some(Self { directory }),
            Err(error) => {
                skip(test, &format!("this kernel does not mount {kind}: {error}"));
                None
            }
        }
    }

    /// An ext4 of which the kernel does not write the rest some seconds after it is mounted.
    pub fn ext4(test: &str, device: &Path) -> Option<Self> {
        let complete = "lazy_itable_init=0,lazy_journal_init=0";
        Self::new(test, device, "ext4", &["-q", "-F", "-E", complete])
    }

    /// Whether the program for it is there; told loudly if not.
    pub fn can_be_made(test: &str, kind: &str) -> bool {
        let program = format!("mkfs.{kind}");
        let there = Command::new(&program).arg("-V").output().is_ok();
        if !there {
            skip(test, &format!("there is no {program}"));
        }
        there
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Mounted {
    #[expect(unsafe_code, reason = "umount2(2)")]
    fn drop(&mut self) {
        let path = CString::new(self.path().to_str().unwrap()).unwrap();
        // SAFETY: a string that outlives the call.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

#[expect(unsafe_code, reason = "mount(2)")]
fn mount(device: &Path, directory: &Path, kind: &str) -> io::Result<()> {
    let text = |path: &Path| CString::new(path.to_str().unwrap()).unwrap();
    let (device, directory, kind) = (text(device), text(directory), CString::new(kind).unwrap());
    // SAFETY: strings that outlive the call.
    let result = unsafe {
        libc::mount(device.as_ptr(), directory.as_ptr(), kind.as_ptr(), 0, std::ptr::null())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Tells a device to forget a range.
pub fn discard(device: &Path, offset: u64, bytes: u64) -> io::Result<()> {
    const BLKDISCARD: libc::c_ulong = 0x1277;

    let file = OpenOptions::new().write(true).custom_flags(libc::O_EXCL).open(device)?;
    let range = [offset, bytes];
    ioctl(&file, BLKDISCARD, range.as_ptr() as libc::c_ulong).map(drop)
}

#[expect(unsafe_code, reason = "ioctls of block devices")]
fn ioctl(file: &File, request: libc::c_ulong, argument: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: the callers pass a number, or the address of what the request takes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as libc::Ioctl, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// An ext4 file system on a device that nobody else uses.
pub struct QuietVolume {
    directory: PathBuf,
    device: String,
    _mounted: Option<Mounted>,
    _device: Option<LoopDevice>,
    _files: tempfile::TempDir,
}

impl QuietVolume {
    /// In the machines a disk of their own, else a loop device; `None`, told loudly,
    /// where it cannot be had.
    pub fn new(test: &str) -> Option<Self> {
        let files = directory_on_disk(test)?;
        if std::env::var_os("EBPFMETRICS_VM").is_some() {
            let directory = files.path().to_owned();
            let device = device_of(&directory);
            return Some(Self { directory, device, _mounted: None, _device: None, _files: files });
        }
        if !Mounted::can_be_made(test, "ext4") {
            return None;
        }
        let device = LoopDevice::new(files.path(), 512 << 20);
        let mounted = Mounted::ext4(test, &device.path())?;
        Some(Self {
            directory: mounted.path().to_owned(),
            device: device.name().to_owned(),
            _mounted: Some(mounted),
            _device: Some(device),
            _files: files,
        })
    }

    pub fn path(&self) -> &Path {
        &self.directory
    }

    pub fn device(&self) -> &str {
        &self.device
    }
}

/// A zram device of its own.
pub struct Zram(u32);

impl Zram {
    pub fn new(test: &str, bytes: u64) -> Option<Self> {
        load_module("zram", &["num_devices=0"]);
        let Ok(number) = fs::read_to_string("/sys/class/zram-control/hot_add") else {
            skip(test, "this kernel has no zram");
            return None;
        };
        let this = Self(number.trim().parse().unwrap());
        fs::write(format!("/sys/block/{}/disksize", this.name()), bytes.to_string()).unwrap();
        let path = this.path();
        assert!(poll(Duration::from_secs(5), || path.exists().then_some(())).is_some());
        Some(this)
    }

    pub fn name(&self) -> String {
        format!("zram{}", self.0)
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(self.name())
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        let _ = fs::write(format!("/sys/block/{}/reset", self.name()), "1");
        let _ = fs::write("/sys/class/zram-control/hot_remove", self.0.to_string());
    }
}

/// A null_blk device of its own: answers as it is told.
pub struct NullBlk {
    directory: PathBuf,
    name: String,
}

impl NullBlk {
    /// 64 MiB, with attributes such as `("badblocks", "+0-7")`.
    pub fn new(test: &str, attributes: &[(&str, &str)]) -> Option<Self> {
        const CONFIG: &str = "/sys/kernel/config";

        if !load_module("null_blk", &["nr_devices=0"]) {
            skip(test, "this kernel has no null_blk");
            return None;
        }
        load_module("configfs", &[]);
        let parent = Path::new(CONFIG).join("nullb");
        if !parent.exists() {
            mount(Path::new("configfs"), Path::new(CONFIG), "configfs").unwrap();
        }
        let before = Self::devices();
        let directory = parent.join(format!("nullb-{test}"));
        fs::create_dir(&directory).unwrap();
        let mut this = Self { directory, name: String::new() };
        let set = |(attribute, value): &(&str, &str)| {
            let path = this.directory.join(attribute);
            fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        };
        [("size", "64"), ("memory_backed", "1")].iter().chain(attributes).for_each(set);
        set(&("power", "1"));
        // by its number on older kernels, by the name of its directory on newer ones
        let mut now = Self::devices();
        now.retain(|name| !before.contains(name));
        let [name] = now.as_slice() else { panic!("{now:?}") };
        this.name.clone_from(name);
        let path = this.path();
        assert!(poll(Duration::from_secs(5), || path.exists().then_some(())).is_some());
        Some(this)
    }

    fn devices() -> Vec<String> {
        let devices = fs::read_dir("/sys/block").unwrap().flatten();
        devices.map(|device| device.file_name().into_string().unwrap()).collect()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }
}

impl Drop for NullBlk {
    fn drop(&mut self) {
        let _ = fs::write(self.directory.join("power"), "0");
        let _ = fs::remove_dir(&self.directory);
    }
}

/// Swap on a device of its own.
pub struct Swap(CString);

impl Swap {
    #[expect(unsafe_code, reason = "swapon(2)")]
    pub fn on(test: &str, device: &Path) -> Option<Self> {
        // what mkswap writes: version, last page, and the word at the end of the page
        let size = fs::read_to_string(
            Path::new("/sys/class/block").join(device.file_name().unwrap()).join("size"),
        );
        let pages = size.unwrap().trim().parse::<u64>().unwrap() * SECTOR / 4096;
        let mut header = vec![0_u8; 4096];
        header[1024..1028].copy_from_slice(&1_u32.to_ne_bytes());
        header[1028..1032].copy_from_slice(&(pages as u32 - 1).to_ne_bytes());
        header[4086..].copy_from_slice(b"SWAPSPACE2");
        let file = OpenOptions::new().write(true).open(device).unwrap();
        file.write_all_at(&header, 0).unwrap();
        file.sync_all().unwrap();
        let path = CString::new(device.to_str().unwrap()).unwrap();
        // SAFETY: a string that outlives the call.
        if unsafe { libc::swapon(path.as_ptr(), 0) } != 0 {
            skip(test, &format!("no swap here: {}", io::Error::last_os_error()));
            return None;
        }
        Some(Self(path))
    }
}

impl Drop for Swap {
    #[expect(unsafe_code, reason = "swapoff(2)")]
    fn drop(&mut self) {
        // SAFETY: a string that outlives the call.
        unsafe { libc::swapoff(self.0.as_ptr()) };
    }
}
