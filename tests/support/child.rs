use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use crate::poll;

/// The workload program under way. Dropping it ends it.
pub struct Workload {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Workload {
    /// Starts `program` (`env!("CARGO_BIN_EXE_workload")`) and waits until it is
    /// under way.
    pub fn start(program: &str, arguments: &[&str]) -> Self {
        let mut this = Self::start_without_waiting(program, arguments);
        assert_ne!(this.line(), "", "workload {arguments:?} ended");
        this
    }

    /// As `start`, for workloads whose first line is their result.
    pub fn start_without_waiting(program: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, input, output }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it tells; empty if it has ended.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Lets work on disks begin, and waits until it is done.
    pub fn go(&mut self) {
        self.tell("go");
        assert_eq!(self.line(), "done");
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) {
        self.child.wait().unwrap();
    }

    pub fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// Tells a line and returns the answer.
    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        let answer = self.line();
        assert_ne!(answer, "", "workload ended at {line:?}");
        answer
    }

    /// Stops all threads and waits until none of them is on a CPU any more.
    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
        let stopped = || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
            tasks.flatten().all(|task| {
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                // after the name, which may hold anything
                let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
                matches!(state, Some('T' | 'Z' | 'X') | None)
            })
        };
        assert!(poll(Duration::from_secs(10), || stopped().then_some(())).is_some());
        // The state is set before the last switch: let that pass.
        std::thread::sleep(Duration::from_millis(20));
    }

    pub fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    /// Ends it without a chance to clean up, and waits for it.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&self, signal: libc::c_int) {
        #[expect(unsafe_code, reason = "kill(2) of our own child, not waited for yet")]
        // SAFETY: no memory is involved.
        let result = unsafe { libc::kill(self.pid() as libc::pid_t, signal) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends this process when the thread that started it ends.
#[expect(unsafe_code, reason = "prctl(2)")]
pub fn die_with_parent() {
    // SAFETY: no memory is involved.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// As [`die_with_parent`], in a child of this process that may have ended by now.
pub fn die_with(parent: u32) {
    die_with_parent();
    if std::os::unix::process::parent_id() != parent {
        std::process::exit(1);
    }
}

/// Ends the calling thread alone, even if it is the first of its process.
#[expect(unsafe_code, reason = "pthread_exit() would run destructors of the process")]
pub fn exit_thread() -> ! {
    // SAFETY: exit(2) takes a number and does not return.
    unsafe {
        libc::syscall(libc::SYS_exit, 0);
    }
    unreachable!()
}

/// Forks, of a process with one thread, with a wanted pid or any; waits for the
/// child and returns its pid and what it used by wait4's rusage, in ns.
pub fn fork_and_wait(pid: Option<u32>, child: impl FnOnce()) -> io::Result<(u32, u64)> {
    let pid = fork_with_pid(pid, child)?;
    Ok((pid, wait_for(pid)?))
}

/// Forks, of a process with one thread, with a wanted pid or any; the child ends after this.
#[expect(unsafe_code, reason = "clone3(2) is the way to choose a pid")]
pub fn fork_with_pid(pid: Option<u32>, child: impl FnOnce()) -> io::Result<u32> {
    let wanted = pid.map(|pid| pid as libc::pid_t);
    // SAFETY: clone_args is plain data.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(wanted) = &wanted {
        args.set_tid = std::ptr::from_ref(wanted) as u64;
        args.set_tid_size = 1;
    }
    // SAFETY: like fork(2); the callers have one thread, so the child may go on.
    let forked =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    if forked == 0 {
        child();
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(0) };
    }
    if forked < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(forked as u32)
}

/// Forks, of a process with one thread; the child ends after this.
#[expect(unsafe_code, reason = "fork(2)")]
pub fn fork(child: impl FnOnce()) -> io::Result<u32> {
    // SAFETY: the callers have one thread, so the child may go on.
    let forked = unsafe { libc::fork() };
    if forked == 0 {
        child();
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(0) };
    }
    if forked < 0 { Err(io::Error::last_os_error()) } else { Ok(forked as u32) }
}

/// Waits until a child has ended, and leaves it as a zombie.
pub fn wait_without_reaping(pid: u32) -> io::Result<()> {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

    let pid = Pid::from_raw(pid as i32).ok_or(io::ErrorKind::InvalidInput)?;
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
    Ok(())
}

/// Waits until a child has ended and has left its CPU, and leaves it as a zombie. A child can be
/// waited for some moments earlier. In an emulated machine these take milliseconds, which are
/// missing in an rusage that is taken at once.
pub fn wait_until_off_cpu(pid: u32) -> io::Result<()> {
    const MOMENTS: std::time::Duration = std::time::Duration::from_millis(20);
    wait_without_reaping(pid)?;
    std::thread::sleep(MOMENTS);
    Ok(())
}

/// As [`wait_for`], with all of its CPU time.
pub fn wait_for_settled(pid: u32) -> io::Result<u64> {
    wait_until_off_cpu(pid)?;
    wait_for(pid)
}

/// Binds the calling thread to a CPU.
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &cpus)?)
}

/// Runs before all that is not real-time.
#[expect(unsafe_code, reason = "sched_setscheduler(2)")]
pub fn become_real_time() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 10 };
    // SAFETY: it reads the parameters.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets others run first.
pub fn be_nice(increment: i32) {
    let _ = rustix::process::nice(increment);
}

/// Waits for a child to end; returns what it used by wait4's rusage, in ns.
#[expect(unsafe_code, reason = "wait4(2) tells what that one child used")]
pub fn wait_for(pid: u32) -> io::Result<u64> {
    // SAFETY: wait4 fills in what it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let waited = libc::wait4(pid as libc::pid_t, std::ptr::null_mut(), 0, &raw mut usage);
        if waited < 0 {
            return Err(io::Error::last_os_error());
        }
        usage
    };
    let ns = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
    Ok(ns(usage.ru_utime) + ns(usage.ru_stime))
}

/// From here on processes whose parents end become children of this process, if they
/// descend from it.
#[expect(unsafe_code, reason = "prctl(2)")]
pub fn adopt_orphans() {
    // SAFETY: no memory is involved.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}

/// What the kernel says of all children that have been waited for.
pub struct ChildrenUsage {
    /// To the us.
    pub cpu_ns: u64,
    pub minor_faults: u64,
    /// Bytes of pages that they dirtied, and of direct I/O (`ru_oublock`).
    pub written_bytes: u64,
}

#[expect(unsafe_code, reason = "getrusage(2)")]
pub fn rusage_of_children() -> ChildrenUsage {
    // SAFETY: rusage is plain data, and getrusage fills it in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage), 0);
        usage
    };
    let ns = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
    ChildrenUsage {
        cpu_ns: ns(usage.ru_utime) + ns(usage.ru_stime),
        minor_faults: usage.ru_minflt as u64,
        written_bytes: usage.ru_oublock as u64 * 512,
    }
}

/// Runs something as the first process of a new PID namespace, with a `/proc` of
/// its own if wanted.
#[expect(unsafe_code, reason = "unshare(2)")]
pub fn in_pid_namespace(own_proc: bool, child: impl FnOnce()) -> anyhow::Result<()> {
    // SAFETY: no memory is involved.
    if unsafe { libc::unshare(libc::CLONE_NEWPID | libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    fork_and_wait(None, || {
        if own_proc {
            crate::privilege::make_mounts_private().unwrap();
            crate::privilege::mount("proc", "/proc").unwrap();
        }
        child();
    })?;
    Ok(())
}

/// What its user vouches for to be moved to another thread.
#[derive(Debug)]
pub struct Unchecked<T>(pub T);

#[expect(unsafe_code, reason = "raw addresses of mappings, used by one thread at a time")]
// SAFETY: the users of this move it whole and leave nothing behind.
unsafe impl<T> Send for Unchecked<T> {}

impl<T> Unchecked<T> {
    pub fn into_inner(self) -> T {
        self.0
    }
}
