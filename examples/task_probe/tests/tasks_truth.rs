//! The figures against those of `/proc`.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use ebpfmetrics::Probe as _;
use task_probe::{TaskProbe, TaskUsage};

/// What `/proc` says; `None` if the process is gone.
fn settings(pid: u32) -> Option<TaskUsage> {
    let number = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    Some(TaskUsage {
        threads: fs::read_dir(format!("/proc/{pid}/task")).ok()?.count() as u64,
        oom_score_adj: Some(number("oom_score_adj")?.trim().parse().ok()?),
        timer_slack: Some(Duration::from_nanos(number("timerslack_ns")?.trim().parse().ok()?)),
    })
}

#[test]
fn settings_are_those_of_proc() {
    let mut probe = TaskProbe::builder().load().unwrap();
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    for score in [123, 1000, 0] {
        fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()).unwrap();
        fs::write(format!("/proc/{pid}/timerslack_ns"), (50_000 + score).to_string()).unwrap();
        let snapshot = probe.reset().unwrap();
        let usage = snapshot.process(pid).unwrap().usage;
        assert_eq!(Some(usage), settings(pid));
        assert_eq!(usage.oom_score_adj, Some(score));
    }
    // other processes change while they are compared
    let snapshot = probe.snapshot().unwrap();
    let (mut same, mut other) = (0, 0);
    for row in &snapshot.processes {
        match settings(row.id.pid) {
            Some(settings) if settings == row.usage => same += 1,
            _ => other += 1,
        }
    }
    assert!(same > 10 * other, "{same} are the same as in /proc, {other} are not");
    // at the end it has what the last walk showed
    drop(child.stdin.take());
    child.wait().unwrap();
    let row = probe.snapshot().unwrap().process(pid).cloned().unwrap();
    assert!(row.info.exited);
    assert_eq!((row.usage.threads, row.usage.oom_score_adj), (1, Some(0)));
}
