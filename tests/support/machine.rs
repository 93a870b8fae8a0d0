use std::{
    fmt,
    io::Write as _,
    time::{Duration, Instant},
};

/// A kernel version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel(pub u8, pub u8);

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The running kernel.
pub fn kernel() -> Kernel {
    let version = procfs::KernelVersion::current().unwrap();
    Kernel(version.major, version.minor)
}

/// Whether every instruction here is emulated: some 20 times slower than usual, and
/// as much later is what happens after a clock was read.
pub fn emulated() -> bool {
    let says = |path, word| std::fs::read_to_string(path).is_ok_and(|text| text.contains(word));
    says("/proc/cpuinfo", "QEMU TCG") || says("/proc/device-tree/compatible", "dummy-virt")
}

/// So many processes or threads, or fewer if the machine is too small for them.
pub fn room_for_tasks(wanted: u32) -> u32 {
    let most = std::fs::read_to_string("/proc/sys/kernel/threads-max").unwrap();
    wanted.min(most.trim().parse::<u32>().unwrap() / 4)
}

/// Whether this kernel is new enough for a test; if not, the skip is told on the
/// real standard error, where the runner of the machines counts it.
#[must_use]
pub fn needs_kernel(test: &str, oldest: Kernel, reason: &str) -> bool {
    if kernel() >= oldest {
        return true;
    }
    tell(&format!("SKIP test={test} needs={oldest} reason={reason}"));
    false
}

/// Tells whether this kernel gives a metric, for the support table.
pub fn support(metric: &str, value: bool, note: &str) {
    let value = if value { "yes" } else { "no" };
    tell(&format!("SUPPORT metric={metric} value={value} note={note}"));
}

/// Past libtest's capture, in one write.
fn tell(line: &str) {
    let _ = std::io::stderr().write_all(format!("\n{line}\n").as_bytes());
}

/// Asks until there is an answer or the time is over.
pub fn poll<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether this machine hides its first process, and with it some events, from eBPF.
/// Unmodified kernels do not.
pub fn hides_first_process() -> bool {
    use ebpfmetrics::{Probe as _, ProbeSet};

    static HIDES: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *HIDES.get_or_init(|| {
        let health = ProbeSet::new().unwrap().health().unwrap();
        health.degraded.iter().any(|degraded| degraded.feature == "process 1")
    })
}
