//! Processes of their own for the checks: the calling program, started once more.
//!
//! An environment variable says what for. A test is found again by the name of its thread,
//! which libtest sets; a program without tests by its arguments.

use std::{
    env,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    ops::RangeInclusive,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Child, Command, Stdio, exit},
    thread,
};

const ROLE: &str = "EBPFMETRICS_CONFORMANCE";
const CHECKER: &str = "checker";
const WORKER: &str = "worker";

/// Differs from the status of a program in which no test was found.
const PASSED: i32 = 86;

/// What this process is for.
pub(super) enum Role {
    /// The test that the author of a probe runs.
    Author,
    /// To run the checks and nothing else: no other test opens and closes descriptors.
    Checker,
    /// To do work that can be counted, and nothing else.
    Worker,
}

pub(super) fn role() -> Role {
    match env::var(ROLE).as_deref() {
        Ok(CHECKER) => Role::Checker,
        Ok(WORKER) => Role::Worker,
        _ => Role::Author,
    }
}

fn again(role: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("/proc is mounted"));
    match thread::current().name() {
        Some(test) if test != "main" => {
            command.args([test, "--exact", "--nocapture", "--include-ignored"])
        }
        _ => command.args(env::args_os().skip(1)),
    };
    command.env(ROLE, role);
    command
}

/// Runs the checks in a process of their own.
///
/// # Panics
/// With the text of the check that failed.
pub(super) fn check_apart() {
    let output = again(CHECKER).stdin(Stdio::null()).output().expect("a process of its own");
    let text = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(PASSED) => {}
        Some(0) => panic!("cannot find the check again: call it once, from a #[test]\n{text}"),
        _ => panic!("{text}"),
    }
}

/// Runs the checks in this process and ends it.
pub(super) fn run(checks: impl FnOnce()) -> ! {
    // a panic has printed its text
    exit(catch_unwind(AssertUnwindSafe(checks)).map_or(1, |()| PASSED))
}

/// The worker's side: does a piece of work for each byte of its standard input, a socket, and
/// answers with what can be counted of it. Ends with its input.
pub(super) fn serve(work: impl Fn() -> RangeInclusive<u64>) -> ! {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().expect("a socket");
    let mut socket = UnixStream::from(socket);
    let mut answer = |text: String| {
        socket.write_all(text.as_bytes()).map(|()| {
            let mut one = [0];
            socket.read(&mut one).is_ok_and(|length| length == 1)
        })
    };
    let mut more = answer("0 0\n".to_owned());
    while let Ok(true) = more {
        let range = work();
        more = answer(format!("{} {}\n", range.start(), range.end()));
    }
    exit(0)
}

/// A process that works on request and does nothing else. Dropping it ends it.
pub(super) struct Worker {
    child: Child,
    socket: Option<BufReader<UnixStream>>,
}

impl Worker {
    pub(super) fn start() -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let mut command = again(WORKER);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        let child = command.spawn().expect("a process of its own");
        let mut this = Self { child, socket: Some(BufReader::new(ours)) };
        this.end();
        this
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts a piece of work.
    pub(super) fn begin(&mut self) {
        self.socket().get_mut().write_all(b"w").expect("the worker is alive");
    }

    /// Waits until it has finished and sleeps; returns what can be counted.
    pub(super) fn end(&mut self) -> RangeInclusive<u64> {
        let mut answer = String::new();
        self.socket().read_line(&mut answer).expect("the worker is alive");
        let range = answer.trim_end().split_once(' ');
        let range = range.and_then(|(start, end)| Some(start.parse().ok()?..=end.parse().ok()?));
        let range =
            range.unwrap_or_else(|| panic!("the work panicked, or the test was not found again"));
        super::until("the worker does not go to sleep", || self.sleeps().then_some(()));
        range
    }

    /// The figures of a running process may be ahead or behind.
    fn sleeps(&self) -> bool {
        let process = procfs::process::Process::new(self.pid() as i32);
        let tasks = process.and_then(|this| this.tasks()).expect("/proc is mounted");
        let state = |task: procfs::process::Task| task.stat().map(|stat| stat.state);
        tasks.flatten().all(|task| state(task).is_ok_and(|state| state == 'S'))
    }

    pub(super) fn work(&mut self) -> RangeInclusive<u64> {
        self.begin();
        self.end()
    }

    /// Ends it and waits for it.
    pub(super) fn exit(mut self) {
        self.socket = None;
        let status = self.child.wait().expect("a child");
        assert!(status.success(), "the worker ended with {status}");
    }

    fn socket(&mut self) -> &mut BufReader<UnixStream> {
        self.socket.as_mut().expect("it is closed by exit() only")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
