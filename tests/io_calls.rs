//! Characters and system calls of processes equal those of `/proc/PID/io`, without children.

use std::{process::Command, time::Duration};

use ebpfmetrics::{DiskProbe, Probe as _, disk::DiskUsage};
use ebpfmetrics_suite::{Workload, poll, support, wait_without_reaping};
use procfs::process::Process;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const COUNT: u64 = 5000;
const BYTES: u64 = 1000;

/// Characters read and written, calls that read and write.
type Figures = [Option<u64>; 4];

fn figures(usage: &DiskUsage) -> Figures {
    [usage.read_chars, usage.written_chars, usage.read_calls, usage.write_calls]
}

/// With the children that the process has waited for.
fn in_proc(pid: u32) -> Figures {
    let io = Process::new(pid as i32).unwrap().io().unwrap();
    [io.rchar, io.wchar, io.syscr, io.syscw].map(Some)
}

#[test]
fn figures_of_threads_add_up_while_they_live_and_after_their_end() {
    let mut probe = DiskProbe::builder().load().unwrap();
    let arguments = ["calls", "3", &COUNT.to_string(), &BYTES.to_string()];
    let mut work = Workload::start(WORKLOAD, &arguments);
    let pid = work.pid();
    let truth = in_proc(pid);
    let alive = probe.snapshot().unwrap();
    let row = alive.process(pid).unwrap();
    assert_eq!(figures(&row.usage), truth, "{row:#?}");
    let [chars, calls] = [4 * COUNT * BYTES, 4 * COUNT];
    let at_least = [chars, chars, calls, calls].map(Some);
    assert!(truth.iter().zip(at_least).all(|(truth, least)| *truth >= least), "{truth:?}");
    for metric in ["read_chars", "written_chars", "read_calls", "write_calls"] {
        let known = alive.provenance.sources.iter().find(|it| it.metric == metric).unwrap();
        let source = known.source.as_deref();
        support(&format!("disk.{metric}"), source.is_some(), source.unwrap_or("-"));
    }
    probe.reset().unwrap();
    work.go();
    wait_without_reaping(pid).unwrap();
    let truth = in_proc(pid);
    let zombie = probe.reset().unwrap();
    let row = zombie.process(pid).unwrap();
    assert_eq!(figures(&row.total), truth, "{row:#?}");
    assert!(row.usage.read_chars < Some(chars), "reported again: {row:#?}");
    work.wait();
    let released = poll(Duration::from_secs(5), || {
        let snapshot = probe.reset().unwrap();
        let again = snapshot.process(pid).map(|row| row.usage.read_chars);
        assert!(again.is_none_or(|chars| chars == Some(0)), "reported again: {again:?}");
        again.is_none().then_some(())
    });
    assert!(released.is_some(), "its row never leaves");
}

#[test]
fn children_that_were_waited_for_are_not_included() {
    let mut probe = DiskProbe::builder().load().unwrap();
    let script = format!("dd if=/dev/zero of=/dev/null bs={BYTES} count={COUNT} 2>&-; :");
    let mut shell = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    wait_without_reaping(shell.id()).unwrap();
    let snapshot = probe.snapshot().unwrap();
    let all = in_proc(shell.id());
    let mut dd = snapshot.processes.iter().filter(|row| row.info.comm == "dd");
    let dd = dd.find(|row| row.info.parent.is_some_and(|it| it.pid == shell.id())).unwrap();
    let row = snapshot.process(shell.id()).unwrap();
    let sum = row.usage.clone() + &dd.usage;
    assert_eq!(figures(&sum), all, "{row:#?} {dd:#?}");
    assert!(dd.usage.read_calls >= Some(COUNT) && row.usage.read_calls < Some(1000), "{row:#?}");
    shell.wait().unwrap();
}
