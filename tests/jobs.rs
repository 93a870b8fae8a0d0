//! Jobs: a command and everything that it starts.

use std::{
    io,
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use ebpfmetrics::{
    ErrorKind, Job, JobReport, ProbeSet,
    job::{JobBuilder, Need},
};
use ebpfmetrics_suite::{
    emulated, hides_first_process, process_cpu_ns, schedstat, wait_until_off_cpu,
};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const PATIENCE: Duration = Duration::from_secs(20);

/// A job with the CPU probe only: it loads faster.
fn cpu_job() -> JobBuilder {
    Job::builder().mem(Need::Off).disk(Need::Off)
}

fn sh(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    command
}

/// `workload job ...`; its output is the CPU time of its children by rusage, in ns.
fn workload(arguments: &[&str]) -> Command {
    let mut command = Command::new(WORKLOAD);
    command.arg("job").args(arguments).stdout(Stdio::piped());
    command
}

fn output(job: &mut Job) -> String {
    let output = job.child().stdout.take().unwrap();
    io::read_to_string(output).unwrap().trim().to_owned()
}

fn cpu_ns(report: &JobReport) -> u64 {
    report.cpu.as_ref().unwrap().cpu_time.as_nanos() as u64
}

fn finish(job: &mut Job) -> JobReport {
    let report = job.finish(PATIENCE).unwrap();
    assert_complete(&report);
    report
}

fn assert_complete(report: &JobReport) {
    println!("{report:?}");
    assert!(report.is_complete);
    assert_eq!(report.still_running, 0);
    // a machine that hides its first process also hides some releases
    assert!(report.without_final_record == 0 || hides_first_process());
}

/// 64 pages of three kinds, by a thread or on a CPU.
const UNSEEN_BYTES: u64 = 3 * 64 * 4096;

/// CPU time of the command until its end, and the rusage of its children. Its end is not reaped.
fn until_end_ns(job: &mut Job) -> u64 {
    let children_ns: u64 = output(job).parse().unwrap();
    let pid = job.child().id();
    wait_until_off_cpu(pid).unwrap();
    children_ns + schedstat(pid).unwrap().cpu_ns
}

/// The rusage of each child is taken a moment before it leaves the CPU, and cut to us. A process
/// whose release this machine hides lacks its last steps, and is counted.
fn assert_used(report: &JobReport, truth_ns: u64) {
    const MOMENTS_NS: u64 = 2_000_000;
    const LAST_STEPS_NS: u64 = 1_000_000;
    let ours_ns = cpu_ns(report);
    let least = truth_ns - report.without_final_record * LAST_STEPS_NS;
    let most = truth_ns + MOMENTS_NS;
    assert!((least..=most).contains(&ours_ns), "{ours_ns} ns, not {truth_ns} ns: {report:?}");
}

#[test]
fn a_command_without_a_read_in_between_equals_rusage() {
    let mut job = Job::spawn(&mut workload(&["spin", "300"])).unwrap();
    let truth_ns = until_end_ns(&mut job);
    let report = finish(&mut job);
    assert_used(&report, truth_ns);
    let cpu = report.cpu.unwrap();
    assert_eq!(cpu.user + cpu.system, cpu.cpu_time);
    assert_eq!(report.exit_status.unwrap().code(), Some(0));
    assert_eq!(report.processes, 2, "the command and its child");
    // no less than the work, and not the time that it took to notice the end
    assert!(report.wall_time >= Duration::from_millis(300));
    let memory = report.memory.unwrap();
    let largest = memory.largest_process.unwrap();
    assert_eq!(largest.comm, "workload");
    assert!((1 << 20..64 << 20).contains(&largest.resident_peak_bytes), "{largest:?}");
    assert!(memory.minor_faults > 100);
    // without a read: each process may be too low by what is not added up in the kernel yet
    let peak = memory.resident_sum_peak_bytes.unwrap() + UNSEEN_BYTES;
    assert!((largest.resident_peak_bytes..64 << 20).contains(&peak), "{memory:?}");
    assert!(report.disk.is_some());
}

#[test]
fn the_memory_of_the_caller_is_not_that_of_the_command() {
    let held = vec![1_u8; 300 << 20];
    let mut job = Job::builder().disk(Need::Off).spawn(&mut sh("sleep 0.3; true")).unwrap();
    thread::sleep(Duration::from_millis(150));
    let so_far = job.usage().unwrap();
    assert!(!so_far.is_complete && so_far.still_running > 0, "{so_far:?}");
    let report = finish(&mut job);
    let memory = report.memory.unwrap();
    assert!(memory.largest_process.unwrap().resident_peak_bytes < 50 << 20, "{memory:?}");
    let peak = memory.resident_sum_peak_bytes.unwrap() + UNSEEN_BYTES;
    assert!((1 << 20..50 << 20).contains(&peak), "{memory:?}");
    assert_eq!(report.disk, None);
    assert_eq!(held[4096], 1);
}

#[test]
fn short_lived_children_are_all_counted() {
    let mut job = cpu_job().spawn(&mut workload(&["children", "200", "500"])).unwrap();
    let truth_ns = until_end_ns(&mut job);
    let report = finish(&mut job);
    assert_eq!(report.processes, 202, "the command, its child, and 200");
    assert_used(&report, truth_ns);
}

#[test]
fn processes_without_a_row_are_counted() {
    let options = ProbeSet::builder().max_exited(20);
    let mut job = cpu_job().set(options).spawn(&mut workload(&["children", "300", "500"])).unwrap();
    let truth_ns = until_end_ns(&mut job);
    let window = job.reset().unwrap();
    assert!(window.overflow_processes() > 200, "{window:?}");
    assert!(window.processes().len() < 40, "{window:?}");
    let report = finish(&mut job);
    assert_eq!(report.processes, 302);
    assert_used(&report, truth_ns);
}

#[test]
fn a_double_fork_is_counted_and_waited_for() {
    // the grandchild loses its parent, and the command ends before it
    let script = format!("({WORKLOAD} job burn 400 >/dev/null &) ; exit 7");
    let mut job = cpu_job().spawn(&mut sh(&script)).unwrap();
    assert!(job.wait_timeout(PATIENCE).unwrap());
    assert!(!job.is_running().unwrap());
    assert_eq!(job.exit_status().unwrap().code(), Some(7));
    let soon = job.finish(Duration::ZERO).unwrap();
    assert!(!soon.is_complete && soon.still_running > 0, "{soon:?}");
    let report = finish(&mut job);
    // the shells take long to start where CPUs are emulated
    let most = if emulated() { 900 } else { 500 };
    assert!((400..most).contains(&(cpu_ns(&report) / 1_000_000)));
    assert_eq!(report.processes, 3);
    assert!(report.wall_time < Duration::from_millis(300), "the command alone: {report:?}");
}

#[test]
fn a_command_that_does_not_exist_is_an_error() {
    let error = cpu_job().spawn(&mut Command::new("/no/such/command")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::System);
    assert!(error.to_string().starts_with("cannot start the command /no/such/command: "));
    let source = std::error::Error::source(&error).unwrap().downcast_ref::<io::Error>().unwrap();
    assert_eq!(source.kind(), io::ErrorKind::NotFound);
    // in a process without other tests
    let output = Command::new(WORKLOAD).args(["job", "missing"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0 descriptors\n", "{output:?}");
}

/// Other threads of the caller start processes all the time. Neither these nor the caller's
/// own work are part of the job; nor is a child from before, or what that starts.
#[test]
fn the_caller_and_its_other_children_are_not_counted() {
    let mut earlier = sh("for i in 1 2 3 4 5 6 7 8 9; do sleep 0.1; done").spawn().unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let burn = workload(&["burn", "20"]).spawn().unwrap().wait_with_output();
                assert!(burn.unwrap().status.success());
            }
        });
        thread::sleep(Duration::from_millis(50));
        let mut job = cpu_job().spawn(&mut workload(&["spin", "200"])).unwrap();
        let start = process_cpu_ns(std::process::id()).unwrap();
        while process_cpu_ns(std::process::id()).unwrap() - start < 100_000_000 {}
        let truth_ns = until_end_ns(&mut job);
        let report = job.finish(PATIENCE).unwrap();
        stop.store(true, Ordering::Relaxed);
        assert_complete(&report);
        assert_used(&report, truth_ns);
        assert_eq!(report.processes, 2);
    });
    earlier.wait().unwrap();
}

#[test]
fn a_command_that_is_killed_has_its_signal() {
    let mut job = cpu_job().spawn(&mut sh("exec sleep 100")).unwrap();
    let start = Instant::now();
    assert!(!job.wait_timeout(Duration::from_millis(50)).unwrap());
    assert!(start.elapsed() >= Duration::from_millis(50));
    job.child().kill().unwrap();
    let report = finish(&mut job);
    assert_eq!(report.exit_status.unwrap().signal(), Some(libc::SIGKILL));
    assert!(report.wall_time < Duration::from_secs(10));
}

fn report_of(output: &std::process::Output) -> JobReport {
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    println!("{report:?}");
    report
}

/// In a process of its own: `SIGCHLD` is ignored there.
#[test]
fn the_status_is_unknown_if_sigchld_is_ignored() {
    let watch = ["job", "watch", "--ignore-sigchld", "100"];
    let output = Command::new(WORKLOAD).args(watch).output().unwrap();
    let report = report_of(&output);
    assert_eq!(report.exit_status, None);
    assert!(report.is_complete);
    // and the start and the end of the command
    assert!((100..300).contains(&(cpu_ns(&report) / 1_000_000)));
    assert!((100..2000).contains(&report.wall_time.as_millis()));
}

/// Pids differ there.
#[test]
fn a_job_can_be_started_in_a_pid_namespace() {
    let output =
        Command::new(WORKLOAD).args(["job", "watch-in-namespace", "100"]).output().unwrap();
    let report = report_of(&output);
    assert_eq!(report.exit_status.unwrap().code(), Some(0));
    assert!(report.is_complete);
    // and the start and the end of the command
    assert!((100..300).contains(&(cpu_ns(&report) / 1_000_000)));
}
