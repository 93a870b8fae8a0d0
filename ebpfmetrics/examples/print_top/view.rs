//! Turns snapshots into text.

use std::{
    io::{IsTerminal, stdout},
    time::Duration,
};

use crossterm::style::Stylize;
use ebpfmetrics::{Probe, ProbeSet, Snapshot, probe::Degraded, process::CommandLines};

use crate::{
    Handles, Options,
    columns::{self, Column, DEFAULT, DEVICE_COLUMNS, OPTIONAL, Value},
    rows::{self, Row},
    table,
};

const MEBIBYTE: f64 = (1 << 20) as f64;

/// What the options select from each snapshot.
pub(crate) struct View<'a> {
    options: &'a Options,
    handles: Handles,
    /// Read if a column shows them.
    commands: Option<CommandLines>,
    degraded: Vec<Degraded>,
    live: bool,
}

impl<'a> View<'a> {
    pub(crate) fn new(
        options: &'a Options,
        handles: Handles,
        set: &ProbeSet,
        live: bool,
    ) -> ebpfmetrics::Result<Self> {
        let shows_commands = options.columns.iter().any(|column| column.name == "COMMAND");
        let commands = shows_commands.then(CommandLines::default);
        Ok(Self { options, handles, commands, degraded: set.health()?.degraded, live })
    }

    pub(crate) fn print(&mut self, snapshot: &Snapshot, set: &ProbeSet) -> anyhow::Result<()> {
        if let Some(commands) = &mut self.commands {
            let processes: Vec<_> = snapshot.processes().map(|it| (it.id, it.info)).collect();
            commands.read(processes.iter().map(|(id, info)| (*id, info)));
        }
        let rows = rows::processes(snapshot, self.handles, self.commands.as_ref());
        let mut text = self.summary(snapshot, &rows);
        text += &match self.handles.disk.filter(|_| self.options.devices) {
            Some(disk) => {
                let devices = &snapshot[disk].devices;
                let columns = DEVICE_COLUMNS.iter().collect();
                let columns = table::fitting(columns, &["d/s", "aqu-sz"]);
                table::draw(&columns, devices, snapshot.window, |device| device.removed)
            }
            None => self.processes(snapshot, rows, set)?,
        };
        Ok(table::print(&text, self.live)?)
    }

    fn processes(
        &self,
        snapshot: &Snapshot,
        mut rows: Vec<Row>,
        set: &ProbeSet,
    ) -> ebpfmetrics::Result<String> {
        let window = snapshot.window;
        if self.options.cgroup.is_some() {
            rows = rows::by_cgroup(&rows, snapshot, self.handles, &set.cgroups()?);
        }
        rows::sort(&mut rows, self.options.sort, window);
        if self.options.forest {
            rows = rows::arrange_as_forest(rows);
        }
        let limit = if self.live { table::terminal_height() } else { usize::MAX };
        rows.truncate(self.options.limit.unwrap_or(limit).min(limit));
        let columns: Vec<&'static Column<Row>> = if self.options.columns.is_empty() {
            let mut known: Vec<_> =
                DEFAULT.iter().filter_map(|name| columns::parse(name).ok()).collect();
            let is_known =
                |row, column: &Column<Row>| !matches!((column.value)(row, window), Value::Unknown);
            known.retain(|column| rows.iter().any(|row| is_known(row, column)));
            table::fitting(known, OPTIONAL)
        } else {
            self.options.columns.clone()
        };
        Ok(table::draw(&columns, &rows, window, Row::exited))
    }

    fn summary(&self, snapshot: &Snapshot, rows: &[Row]) -> String {
        let window = snapshot.window;
        let mut sum = Row::default();
        rows.iter().for_each(|row| sum.add(row));
        let exited = rows.iter().filter(|row| row.exited()).count() as u64;
        let mut lines = vec![format!(
            "{:.3} s: {} processes, {} exited. Percent of one CPU, MiB, MiB/s",
            window.duration().as_secs_f64(),
            rows.len() as u64 - exited,
            exited + snapshot.overflow_processes(),
        )];
        if let (Some(cpu), Some(usage)) = (self.handles.cpu, sum.cpu) {
            let system = &snapshot[cpu];
            let percent = |time: Duration| window.percent(time) / system.online_cpus.max(1) as f64;
            lines.push(format!(
                "{} CPUs: {:.1} % used by these processes, {} % idle, {:.1} % interrupted or stolen",
                system.online_cpus,
                percent(usage.cpu_time),
                system.idle().map_or("?".into(), |idle| format!("{:.1}", percent(idle))),
                percent(system.interrupted()),
            ));
        }
        if let Some(memory) = self.handles.mem.and_then(|mem| snapshot[mem].machine.as_ref()) {
            let mebibytes = |bytes: u64| format!("{:.0}", bytes as f64 / MEBIBYTE);
            lines.push(format!(
                "Memory: {} MiB, {} available; swap: {}, {} free",
                mebibytes(memory.total_bytes),
                memory.available_bytes.map_or("?".into(), mebibytes),
                mebibytes(memory.swap_total_bytes),
                mebibytes(memory.swap_free_bytes),
            ));
        }
        let losses = snapshot.losses.iter().filter(|loss| loss.count > 0);
        let losses = losses.map(|it| format!("Lost: {} {} ({})", it.count, it.cause, it.probe));
        let colored = stdout().is_terminal();
        for warning in losses.chain(self.unavailable()) {
            lines.push(if colored { warning.yellow().to_string() } else { warning });
        }
        lines.join("\n") + "\n"
    }

    /// A live table has room for the names only.
    fn unavailable(&self) -> Vec<String> {
        let names: Vec<_> = self.degraded.iter().map(|it| it.feature.to_string()).collect();
        match self.live {
            true if names.is_empty() => Vec::new(),
            true => vec![format!("Not available: {}", names.join(", "))],
            false => {
                let line = |it: &Degraded| format!("Not available: {} ({})", it.feature, it.reason);
                self.degraded.iter().map(line).collect()
            }
        }
    }
}
