//! Text for people.

use std::{
    cmp::Reverse,
    io::{IsTerminal, stdout},
    time::Duration,
};

use comfy_table::{Attribute, Cell, CellAlignment, Color, ColumnConstraint, Table, Width, presets};
use crossterm::style::Stylize;
use ebpfmetrics::{Comm, CpuProcess, CpuSnapshot, CpuUsage, Degraded, ProcessInfo, Window};

use crate::{Options, Sort};

/// The lines above the table: the machine as a whole, and what is missing.
pub(crate) fn header(snapshot: &CpuSnapshot, degraded: &[Degraded]) -> String {
    let (window, cpus) = (snapshot.window, snapshot.online_cpus);
    let machine = window.duration() * cpus as u32;
    let exited = snapshot.processes.iter().filter(|process| process.info.exited).count();
    let interrupted = snapshot.cpus.iter().map(|cpu| cpu.interrupted).sum();
    let mut header = format!(
        "{:.3} s: {} processes, {} more exited\n\
         {cpus} CPUs: {:.1} % busy, {} % idle, {} % interrupted or stolen\n",
        window.duration().as_secs_f64(),
        snapshot.processes.len() - exited,
        exited as u64 + snapshot.folded.processes,
        snapshot.total().percent_of_machine(window, cpus),
        snapshot.idle().map_or("?".into(), |idle| percent(idle, machine)),
        percent(interrupted, machine),
    );
    let lost = snapshot.losses.iter().filter(|(_, count)| *count > 0);
    let missing = degraded.iter().map(|it| format!("Not known: {} ({})", it.feature, it.reason));
    for warning in lost.map(|(cause, count)| format!("Lost: {count} {cause}")).chain(missing) {
        let color = stdout().is_terminal();
        header += &if color { warning.yellow().to_string() } else { warning };
        header.push('\n');
    }
    header
}

fn percent(part: Duration, whole: Duration) -> String {
    format!("{:.1}", part.as_secs_f64() / whole.as_secs_f64() * 100.0)
}

pub(crate) fn table(snapshot: &CpuSnapshot, options: &Options, limit: usize) -> String {
    let processes = snapshot.processes.iter().map(Row::new);
    let threads = snapshot.threads.iter().filter_map(|thread| {
        let process = Row::new(snapshot.process(thread.process.pid)?);
        let tid = thread.id.tid.to_string();
        Some(Row { count: tid, comm: thread.comm, usage: &thread.usage, ..process })
    });
    let mut rows: Vec<Row> = if options.threads {
        threads.chain(processes.filter(|row| row.exited)).collect()
    } else {
        processes.collect()
    };
    rows.sort_by_key(|row| (Reverse(row.rank(options.sort)), row.pid));

    let count = if options.threads { "TID" } else { "THR" };
    let head = ["PID", count, "UID", "%CPU", "%USR", "%SYS", "%WAIT", "VOL/s", "INVOL/s", "COMM"];
    let widths = [7, 7, 5, 6, 6, 6, 6, 6, 7, 15]; // At least: steady columns, 80 in all.
    let mut table = Table::new();
    table.style_text_only();
    table
        .load_preset(presets::NOTHING)
        .set_header(head.map(|name| Cell::new(name).add_attribute(Attribute::Bold)))
        .add_rows(rows.iter().take(limit).map(|row| row.cells(snapshot.window)));
    for (column, (name, width)) in table.column_iter_mut().zip(head.into_iter().zip(widths)) {
        let side = if name == "COMM" { CellAlignment::Left } else { CellAlignment::Right };
        column.set_padding((0, 1)).set_cell_alignment(side);
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + 1)));
    }
    table.trim_fmt() + "\n"
}

/// A process, or one of its threads.
struct Row<'a> {
    pid: u32,
    count: String, // Of threads, or which of them.
    uid: u32,
    comm: Comm,
    exited: bool,
    usage: &'a CpuUsage,
}

impl<'a> Row<'a> {
    fn new(process: &'a CpuProcess) -> Self {
        let CpuProcess { id, info, usage, .. } = process;
        let &ProcessInfo { threads, uid, comm, exited, .. } = info;
        let count = if exited { "exited".into() } else { threads.to_string() };
        Self { pid: id.pid, count, uid, comm, exited, usage }
    }

    fn rank(&self, sort: Sort) -> u128 {
        let usage = self.usage;
        match sort {
            Sort::Cpu => usage.cpu_time.as_nanos(),
            Sort::User => usage.user.as_nanos(),
            Sort::System => usage.system.as_nanos(),
            Sort::Wait => usage.run_queue_wait.unwrap_or_default().as_nanos(),
            Sort::Switches => (usage.voluntary_switches + usage.involuntary_switches).into(),
            Sort::Pid => 0,
        }
    }

    fn cells(&self, window: Window) -> [Cell; 10] {
        let (usage, length) = (self.usage, window.duration());
        let per_second = |count: u64| format!("{:.0}", count as f64 / length.as_secs_f64());
        let texts = [
            self.pid.to_string(),
            self.count.clone(),
            self.uid.to_string(),
            percent(usage.cpu_time, length),
            percent(usage.user, length),
            percent(usage.system, length),
            usage.run_queue_wait.map_or("?".into(), |wait| percent(wait, length)),
            per_second(usage.voluntary_switches),
            per_second(usage.involuntary_switches),
            self.comm.to_string().replace(char::is_control, "?"), // It may hold anything.
        ];
        let dim = |cell: Cell| if self.exited { cell.fg(Color::DarkGrey) } else { cell };
        texts.map(|text| dim(Cell::new(text)))
    }
}
