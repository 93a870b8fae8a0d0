//! The totals of a job on one line.

use std::io::{self, Write, stderr};

use ebpfmetrics::JobReport;

pub(crate) fn print(report: &JobReport) -> io::Result<()> {
    let mut line = format!("{:.3} s", report.wall_time.as_secs_f64());
    if let Some(cpu) = &report.cpu {
        let (user, system) = (cpu.user.as_secs_f64(), cpu.system.as_secs_f64());
        line += &format!(", CPU {user:.3} s user {system:.3} s system");
    }
    if let Some(memory) = &report.memory {
        let mebibytes = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let peak = memory.resident_sum_peak_bytes.map_or("unknown".into(), mebibytes);
        line += &format!(", peak memory (sum of RSS) {peak}");
        if let Some(largest) = memory.largest_process {
            let peak = mebibytes(largest.resident_peak_bytes);
            line += &format!(", largest process {peak} ({})", largest.comm);
        }
    }
    if let Some(disk) = &report.disk {
        line += &format!(", {} bytes read", disk.total.read_bytes);
        line += &format!(" {} written", disk.total.written_bytes);
    }
    line += &format!(", {} processes", report.processes);
    if !report.is_complete {
        line += &format!(" ({} still run)", report.still_running);
    }
    let status = report.exit_status.map_or("exit status unknown".into(), |it| it.to_string());
    writeln!(stderr(), "{line}, {status}")
}
