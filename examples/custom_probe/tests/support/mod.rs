//! A child with known system calls, and what the kernel's own tracer says of them.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
#![allow(dead_code, reason = "no test uses all of it")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::fd::{AsRawFd as _, OwnedFd},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// `caller` under way. Dropping it ends it.
pub(crate) struct Caller {
    child: Child,
    /// Who does the work: the child, or the child's child.
    pid: u32,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Caller {
    pub(crate) fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_caller"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let this = Self { pid: child.id(), child, input, output };
        this.wait_until_idle();
        this
    }

    /// Lets a child of the child do the work from now on, and waits until it can.
    pub(crate) fn fork(&mut self) {
        self.pid = self.ask("again").parse().unwrap();
        self.wait_until_idle();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Has each of its threads make so many calls that succeed, and that fail, and waits
    /// until it makes no more. The ids of its threads.
    pub(crate) fn work(&mut self, threads: u64, good: u64, bad: u64) -> Vec<u32> {
        let answer = self.ask(&format!("{threads} {good} {bad}"));
        self.wait_until_idle();
        let ids = answer.strip_prefix("done ").unwrap().split(' ');
        ids.map(|id| id.parse().unwrap()).collect()
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.input.as_mut().unwrap(), "{question}").unwrap();
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }

    /// It sleeps within `read(0, ..)`: that call has begun, and the next comes after
    /// the next question.
    fn wait_until_idle(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let file = format!("/proc/{}/syscall", self.pid);
        loop {
            // `NUMBER ARGUMENTS..`, or `running`; and of a program that just starts the
            // number is -1
            let call = fs::read_to_string(&file).unwrap();
            let mut words = call.split(' ');
            if words.next() != Some("-1") && words.next() == Some("0x0") {
                return;
            }
            assert!(Instant::now() < deadline, "{call}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets it end, and waits for it.
    pub(crate) fn end(mut self) {
        drop(self.input.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        drop(self.input.take()); // with it the child of the child ends
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// ftrace of the system calls of all programs called `caller`, in an instance of its own
/// that ends with the value. By name, not by `set_event_pid`: that depends on seeing
/// every context switch. Never of who reads it, who would read of its own reading
/// without end.
pub(crate) struct Trace {
    /// tracefs, mounted nowhere: gone with the descriptor.
    _mount: OwnedFd,
    instance: PathBuf,
}

/// What it saw of some threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traced {
    pub(crate) calls: u64,
    pub(crate) errors: u64,
}

impl Trace {
    pub(crate) fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_create(&context).unwrap();
        let mount =
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let instance = format!("instances/custom-probe-{}-{number}", std::process::id());
        let instance = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd())).join(instance);
        fs::create_dir(&instance).unwrap();
        let this = Self { _mount: mount, instance };
        this.set("buffer_size_kb", "16384");
        this.set("events/raw_syscalls/filter", "comm == \"caller\"");
        this.set("events/raw_syscalls/enable", "1");
        this
    }

    /// What it saw so far of these threads.
    pub(crate) fn read(&self, threads: &[u32]) -> Traced {
        for cpu in fs::read_dir(self.instance.join("per_cpu")).unwrap().flatten() {
            let stats = fs::read_to_string(cpu.path().join("stats")).unwrap();
            let lost = |name| stats.lines().any(|l| l.starts_with(name) && !l.ends_with(": 0"));
            assert!(!lost("overrun") && !lost("dropped events"), "the tracer lost events: {stats}");
        }
        let text = fs::read(self.instance.join("trace")).unwrap();
        let mut traced = Traced::default();
        for line in String::from_utf8_lossy(&text).lines() {
            // `COMM-TID [CPU] FLAGS SECONDS: sys_enter: NR 1 (..)`, `.. sys_exit: NR 1 = -9`
            let Some((task, rest)) = line.split_once(" [") else { continue };
            let tid = task.trim_end().rsplit('-').next().and_then(|tid| tid.parse().ok());
            if !tid.is_some_and(|tid| threads.contains(&tid)) {
                continue;
            }
            if rest.contains(": sys_enter: ") {
                traced.calls += 1;
            } else if let Some((_, exit)) = rest.split_once(": sys_exit: ") {
                let result: i64 = exit.rsplit(" = ").next().unwrap().trim().parse().unwrap();
                traced.errors += u64::from((-4095..0).contains(&result));
            }
        }
        traced
    }

    fn set(&self, file: &str, value: &str) {
        fs::write(self.instance.join(file), value).unwrap_or_else(|e| panic!("{file}: {e}"));
    }
}

impl Drop for Trace {
    /// What is left of it would slow every system call of the machine. It is busy for as
    /// long as a child that another thread starts has its files, up to its exec.
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = fs::remove_dir(&self.instance) {
            let late = Instant::now() > deadline;
            assert!(!late || thread::panicking(), "{}: {error}", self.instance.display());
            if late {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}
