//! Events of the slab allocator, recorded by the kernel's own tracer.

use std::{fs, os::fd::AsRawFd as _, os::fd::OwnedFd, path::PathBuf};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// ftrace of all allocations and frees, in its own instance, which is removed when the value
/// is dropped.
pub struct SlabTrace {
    /// tracefs, mounted without a path; unmounted with the descriptor.
    _mount: OwnedFd,
    instance: PathBuf,
}

/// One allocation or free.
#[derive(Clone, Copy, Debug)]
pub struct SlabEvent {
    pub tid: u32,
    /// `CLOCK_MONOTONIC`, rounded down to us.
    pub at_ns: u64,
    /// Of the object, or a hash of it.
    pub address: u64,
    /// The allocated size; `None` for a free.
    pub allocated_bytes: Option<u64>,
}

const EVENTS: [&str; 6] = [
    "kmalloc",
    "kmem_cache_alloc",
    "kfree",
    "kmem_cache_free",
    // before 6.1
    "kmalloc_node",
    "kmem_cache_alloc_node",
];

impl SlabTrace {
    pub fn start() -> Self {
        let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_create(&context).unwrap();
        let mount =
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
        let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        let instance = root.join(format!("instances/ebpfmetrics-{}", std::process::id()));
        fs::create_dir(&instance).unwrap();
        let this = Self { _mount: mount, instance };
        // per CPU: a million events, some seconds of a machine that compiles
        this.set("buffer_size_kb", "65536");
        this.set("trace_clock", "mono");
        // addresses as they are, where the tracer can
        if this.instance.join("options/hash-ptr").exists() {
            this.set("options/hash-ptr", "0");
        }
        for event in EVENTS {
            let switch = format!("events/kmem/{event}/enable");
            if this.instance.join(&switch).exists() {
                this.set(&switch, "1");
            }
        }
        this
    }

    /// Stops the trace; returns its events in the order of time.
    pub fn stop(self) -> Vec<SlabEvent> {
        self.set("tracing_on", "0");
        for cpu in fs::read_dir(self.instance.join("per_cpu")).unwrap().flatten() {
            let stats = fs::read_to_string(cpu.path().join("stats")).unwrap();
            let lost = |name| stats.lines().any(|l| l.starts_with(name) && !l.ends_with(": 0"));
            assert!(!lost("overrun") && !lost("dropped events"), "the tracer lost events: {stats}");
        }
        let text = fs::read(self.instance.join("trace")).unwrap();
        String::from_utf8_lossy(&text).lines().filter_map(parse).collect()
    }

    fn set(&self, file: &str, value: &str) {
        fs::write(self.instance.join(file), value).unwrap_or_else(|e| panic!("{file}: {e}"));
    }
}

impl Drop for SlabTrace {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.instance);
    }
}

/// `COMM-TID [CPU] FLAGS SECONDS: EVENT: call_site=.. ptr=.. bytes_alloc=..`; neither
/// NULL nor what kmalloc(0) returns is an object.
fn parse(line: &str) -> Option<SlabEvent> {
    let (head, arguments) =
        EVENTS.iter().find_map(|event| line.split_once(&format!(": {event}: ")))?;
    let (task, _) = head.split_once(" [")?;
    let (seconds, micros) = head.rsplit(' ').next()?.split_once('.')?;
    let value = |name| {
        let value = arguments.split(name).nth(1)?;
        value.split(' ').next()
    };
    let address = u64::from_str_radix(value("ptr=")?.trim_start_matches("0x"), 16).unwrap_or(0);
    (address > 16).then_some(SlabEvent {
        tid: task.trim_end().rsplit('-').next()?.parse().ok()?,
        at_ns: (seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?) * 1000,
        address,
        allocated_bytes: value("bytes_alloc=").and_then(|bytes| bytes.parse().ok()),
    })
}
