//! Other watchers than ours, and what their programs in the kernel cost.

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{Btf, Ebpf, EbpfLoader, programs::BtfTracePoint};

pub(crate) const CLANG: &str = "clang-19";

/// By the kernel's statistics.
#[derive(Clone, Copy, Default)]
pub(crate) struct Program {
    pub(crate) runs: u64,
    pub(crate) time_ns: u64,
}

/// A tool that watches until it is dropped.
pub(crate) struct Tool(Child);

impl Tool {
    /// Starts it where it finds the tracepoints: mounted for it alone if need be.
    pub(crate) fn start(tool: &[&str]) -> Result<Self> {
        const MOUNTED: &str = "[ -e /sys/kernel/debug/tracing/events ] || \
             mount -t debugfs debugfs /sys/kernel/debug; exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", MOUNTED, "sh"]).args(tool);
        let mut tool = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        let start = Instant::now();
        while programs_of(tool.id()).unwrap_or_default().is_empty() {
            let ended = tool.0.try_wait()?;
            ensure!(
                ended.is_none() && start.elapsed() < Duration::from_secs(20),
                "it does not start: {ended:?}"
            );
            thread::sleep(Duration::from_millis(20));
        }
        // loaded; it still has to attach: whether it did shows in its count of runs
        thread::sleep(Duration::from_millis(500));
        Ok(tool)
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a program is installed.
pub(crate) fn is_there(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok()
}

/// The programs that a process holds, by id.
pub(crate) fn programs_of(process: u32) -> Result<BTreeMap<u32, Program>> {
    let mut programs = BTreeMap::new();
    for file in fs::read_dir(format!("/proc/{process}/fdinfo"))?.flatten() {
        let text = fs::read_to_string(file.path()).unwrap_or_default();
        let value = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.strip_prefix(':')?.trim().parse().ok()
        };
        if let (Some(id), Some(runs), Some(time_ns)) =
            (value("prog_id"), value("run_cnt"), value("run_time_ns"))
        {
            programs.insert(id as u32, Program { runs, time_ns });
        }
    }
    Ok(programs)
}

/// Programs that do nothing, from a source beside the benches, each with its
/// tracepoint.
pub(crate) fn empty(source: &str, programs: &[(&str, &str)]) -> Result<Ebpf> {
    let source = format!("{}/benches/bpf/{source}", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(CLANG)
        .args(["-O2", "-g", "-target", "bpf", "-c", &source, "-o", "-"])
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let btf = Btf::from_sys_fs()?;
    let mut object = EbpfLoader::new().btf(Some(&btf)).load(&output.stdout)?;
    for (name, tracepoint) in programs {
        let program: &mut BtfTracePoint =
            object.program_mut(name).context("no program")?.try_into()?;
        program.load(tracepoint, &btf)?;
        program.attach()?;
    }
    Ok(object)
}
