//! One virtual machine: arguments of QEMU, time limit, termination.

use std::{
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{arch::Arch, tools};

const POLL: Duration = Duration::from_millis(20);

/// A machine that never falls silent is stopped after so many time limits.
const TALKATIVE: u32 = 10;

pub(super) struct Machine<'a> {
    pub(super) arch: Arch,
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    pub(super) disks: &'a [PathBuf],
    pub(super) mebibytes: u32,
}

/// The files that a machine writes.
pub(super) struct Logs {
    pub(super) console: PathBuf,
    pub(super) output: PathBuf,
    pub(super) qemu: PathBuf,
}

impl Logs {
    pub(super) fn in_directory(directory: &Path) -> Logs {
        Logs {
            console: directory.join("console.log"),
            output: directory.join("tests.log"),
            qemu: directory.join("qemu.log"),
        }
    }

    /// Removes the logs of an earlier run.
    pub(super) fn clear(&self) -> Result<()> {
        [&self.console, &self.output, &self.qemu]
            .into_iter()
            .try_for_each(|log| Ok(fs::write(log, "")?))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It powered off, or its kernel panicked.
    Stopped,
    TimedOut,
    Interrupted,
}

impl Machine<'_> {
    /// Runs until the machine stops, is silent for too long, or the user
    /// interrupts. Each test that starts or ends is a sign of life.
    pub(super) fn run(&self, logs: &Logs, silence: Duration, stop: &AtomicBool) -> Result<Ending> {
        let output = format!("file,id=output,path={}", escape(logs.output.as_os_str()));
        let port = format!("{},chardev=output", self.arch.second_port());
        let mut command = self.command();
        command
            .args(["-serial", &format!("file:{}", logs.console.display())])
            .args(["-chardev", &output, "-device", &port])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&logs.qemu)?);
        let mut qemu = Running(command.spawn().context("cannot start QEMU")?);

        let started = Instant::now();
        let mut heard = started;
        let mut length = 0;
        while qemu.0.try_wait()?.is_none() {
            let now = Instant::now();
            if let Ok(output) = fs::metadata(&logs.output)
                && output.len() != length
            {
                length = output.len();
                heard = now;
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(Ending::Interrupted);
            }
            if now - heard > silence || now - started > silence * TALKATIVE {
                return Ok(Ending::TimedOut);
            }
            thread::sleep(POLL);
        }
        Ok(Ending::Stopped)
    }

    /// Runs with this terminal as the first serial port; keeps a copy in `log`.
    pub(super) fn interact(&self, log: &Path) -> Result<()> {
        // Keys go to the guest, Ctrl-C too; Ctrl-a is QEMU's own prefix.
        let terminal =
            format!("stdio,id=terminal,mux=on,signal=off,logfile={}", escape(log.as_os_str()));
        let mut command = self.command();
        command.args(["-chardev", &terminal, "-mon", "terminal", "-serial", "chardev:terminal"]);
        Running(command.spawn().context("cannot start QEMU")?).0.wait()?;
        Ok(())
    }

    fn command(&self) -> Command {
        // Should this process be killed, the kernel kills the machine with it.
        let mut command = tools::command("setpriv");
        command.args(["--pdeathsig", "KILL", self.arch.qemu()]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.args(self.arch.machine());
        // One thread for both processors: QEMU 7.2's several threads sometimes
        // lose a race with a kernel that patches its own code, which panics.
        command.args(["-accel", "tcg,thread=single", "-smp", "2"]);
        command.args(["-m", &format!("{}M", self.mebibytes)]);
        command.arg("-kernel").arg(self.kernel).arg("-initrd").arg(self.initramfs);
        let [console, _] = self.arch.ports();
        command
            .arg("-append")
            .arg(format!("console={console} panic=-1 oops=panic random.trust_cpu=on {CLOCK}"));
        for (number, disk) in self.disks.iter().enumerate() {
            let file = escape(disk.as_os_str());
            let drive = format!("file={file},format=raw,if=none,id=disk{number},cache=unsafe");
            let device = format!("nvme,drive=disk{number},serial=disk{number}");
            command.args(["-drive", &drive, "-device", &device]);
        }
        command
    }
}

/// On a busy host some kernels misjudge the speed of an emulated TSC by up to 40 %,
/// and take it for stable. Then the scheduler's clock runs away from the monotonic
/// one; this ties it to that, and is no parameter on other architectures.
const CLOCK: &str = "tsc=unstable";

/// A QEMU that does not outlive this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// QEMU reads `,` as the end of a value unless it is doubled.
fn escape(path: impl Into<OsString>) -> String {
    path.into().to_string_lossy().replace(',', ",,")
}
