use std::{
    cmp::Ordering,
    collections::BTreeMap,
    io::{IsTerminal, Write, stdout},
    time::Duration,
};

use comfy_table::{Attribute, Cell, CellAlignment, Color, ColumnConstraint, Width, presets};
use crossterm::{
    cursor::MoveTo,
    queue,
    style::{Print, Stylize},
    terminal::{self, *},
};
use ebpfmetrics::disk::DiskCounters;
use ebpfmetrics::{
    Cgroups, CpuUsage, MemUsage, Probe, ProbeSet, Snapshot, Window, group::group_by_cgroup,
};

use crate::{Handles, Options};

/// Name, minimum width, decimals, figure.
type Column = (&'static str, u16, usize, fn(&Row, Window) -> Option<f64>);
const COLUMNS: &[Column] = &[
    ("PID", 7, 0, |row, _| row.pid.map(f64::from)),
    ("THR", 6, 0, |row, _| row.threads.map(f64::from)),
    ("PROCS", 6, 0, |row, _| row.members.map(f64::from)),
    ("UID", 5, 0, |row, _| row.uid.map(f64::from)),
    ("%CPU", 5, 1, |row, window| Some(window.percent(row.cpu?.cpu_time))),
    ("%USR", 5, 1, |row, window| Some(window.percent(row.cpu?.user))),
    ("%SYS", 5, 1, |row, window| Some(window.percent(row.cpu?.system))),
    ("%WAIT", 5, 1, |row, window| Some(window.percent(row.cpu?.run_queue_wait?))),
    ("CSW/s", 6, 0, |row, window| {
        Some(window.per_second(row.cpu?.voluntary_switches + row.cpu?.involuntary_switches))
    }),
    ("RSS", 7, 1, |row, _| Some(row.mem?.resident_bytes? as f64 / MEBIBYTE)),
    ("PEAK", 7, 1, |row, _| Some(row.mem?.resident_peak_bytes? as f64 / MEBIBYTE)),
    ("RD/s", 6, 1, |row, window| Some(window.per_second(row.disk?.read_bytes) / MEBIBYTE)),
    ("WR/s", 6, 1, |row, window| Some(window.per_second(row.disk?.written_bytes) / MEBIBYTE)),
];
/// Left out, in this order, where the terminal is too narrow.
const OPTIONAL: [&str; 3] = ["CSW/s", "UID", "%SYS"];
const NAME_WIDTH: u16 = 15;
const MEBIBYTE: f64 = (1 << 20) as f64;

/// Finds a column by the argument of `--sort`.
pub(crate) fn column(name: &str) -> Result<usize, String> {
    let names: Vec<_> = COLUMNS
        .iter()
        .map(|(name, ..)| name.trim_start_matches('%').trim_end_matches("/s").to_lowercase())
        .collect();
    let found = names.iter().position(|column| column == name);
    found.ok_or_else(|| format!("the columns are {}", names.join(", ")))
}

/// A process or a cgroup.
#[derive(Default)]
struct Row {
    pid: Option<u32>,
    threads: Option<u32>,
    /// Live processes of a cgroup.
    members: Option<u32>,
    uid: Option<u32>,
    /// 0 if it is not known.
    cgroup_id: u64,
    name: String,
    exited: bool,
    cpu: Option<CpuUsage>,
    mem: Option<MemUsage>,
    disk: Option<DiskCounters>,
}

impl Row {
    fn add(&mut self, row: &Self) {
        *self.members.get_or_insert(0) += u32::from(!row.exited);
        self.cpu = self.cpu.into_iter().chain(row.cpu).reduce(|sum, more| sum + more);
        self.mem = self.mem.into_iter().chain(row.mem).reduce(|sum, more| sum + more);
        (self.disk = self.disk.into_iter().chain(row.disk).reduce(|sum, more| sum + more));
    }
}

/// Turns snapshots into text.
pub(crate) struct Table<'a> {
    options: &'a Options,
    handles: Handles,
    /// Names of cgroups, also of those that have been deleted since.
    cgroups: BTreeMap<u64, String>,
    unavailable: Vec<String>,
}

impl<'a> Table<'a> {
    pub(crate) fn new(
        options: &'a Options,
        handles: Handles,
        set: &ProbeSet,
    ) -> ebpfmetrics::Result<Self> {
        let degraded = set.health()?.degraded.into_iter();
        let unavailable = degraded.map(|it| format!("Unavailable: {} ({})", it.feature, it.reason));
        let unavailable = unavailable.collect();
        Ok(Self { options, handles, cgroups: BTreeMap::new(), unavailable })
    }

    /// Prints a summary and the rows; a live table in place of the previous one, as far as
    /// the terminal has room.
    pub(crate) fn print(
        &mut self,
        snapshot: &Snapshot,
        set: &ProbeSet,
        live: bool,
    ) -> anyhow::Result<()> {
        let window = snapshot.window;
        let mut rows = self.processes(snapshot);
        let summary = self.summary(snapshot, &rows);
        if self.options.cgroup.is_some() {
            rows = self.by_cgroup(&rows, snapshot, &set.cgroups()?);
        }
        let (name, .., figure) = COLUMNS[self.options.sort];
        rows.sort_by(|a, b| {
            let order = figure(b, window).partial_cmp(&figure(a, window));
            if name == "PID" { a.pid.cmp(&b.pid) } else { order.unwrap_or(Ordering::Equal) }
        });
        let (_, height) = terminal::size().unwrap_or((80, 24));
        let limit = if live { usize::from(height) } else { usize::MAX };
        rows.truncate(self.options.limit.unwrap_or(limit).min(limit));
        let text = summary + &draw(&rows, window);
        let mut out = stdout().lock();
        if !live {
            writeln!(out, "{}", text.trim_end())?;
            return Ok(());
        }
        queue!(out, BeginSynchronizedUpdate, DisableLineWrap, MoveTo(0, 0), Clear(ClearType::All))?;
        for line in text.lines().take(limit.saturating_sub(1)) {
            queue!(out, Print(line), Print("\r\n"))?;
        }
        queue!(out, EnableLineWrap, EndSynchronizedUpdate)?;
        Ok(out.flush()?)
    }

    fn processes(&self, snapshot: &Snapshot) -> Vec<Row> {
        let rows = snapshot.processes().map(|process| Row {
            pid: Some(process.id.pid),
            threads: Some(process.info.threads),
            members: None,
            uid: process.info.uid,
            cgroup_id: process.info.cgroup_id.unwrap_or_default(),
            name: process.info.comm.to_string(), // escapes what could disturb a terminal
            exited: process.info.exited,
            cpu: self.handles.cpu.map(|cpu| process[cpu]),
            mem: self.handles.mem.map(|mem| process[mem]),
            disk: self.handles.disk.map(|disk| process[disk].total),
        });
        rows.collect()
    }

    /// Sums by cgroup. What was used before a process moved counts where it was used.
    fn by_cgroup(&mut self, rows: &[Row], snapshot: &Snapshot, now: &Cgroups) -> Vec<Row> {
        let mut groups = BTreeMap::<u64, Row>::new();
        rows.iter().for_each(|row| groups.entry(row.cgroup_id).or_default().add(row));
        if let Some(cpu) = self.handles.cpu {
            for (id, group) in group_by_cgroup(&snapshot.of(cpu)).groups {
                groups.entry(id).or_default().cpu = Some(group.usage);
            }
        }
        if let Some(mem) = self.handles.mem {
            for (id, group) in group_by_cgroup(&snapshot.of(mem)).groups {
                groups.entry(id).or_default().mem = Some(group.usage);
            }
        }
        for (&id, group) in &mut groups {
            if let Some(path) = now.path(id) {
                // it may hold anything
                let path = path.to_string_lossy().replace(|c: char| !matches!(c, '!'..='~'), "?");
                self.cgroups.insert(id, path);
            }
            group.name = match self.cgroups.get(&id) {
                Some(path) => path.clone(),
                None if id == 0 => "(not known)".into(),
                None => format!("(deleted: {id})"),
            };
        }
        groups.into_values().collect()
    }

    fn summary(&self, snapshot: &Snapshot, rows: &[Row]) -> String {
        let window = snapshot.window;
        let mut sum = Row::default();
        rows.iter().for_each(|row| sum.add(row));
        let exited = rows.iter().filter(|row| row.exited).count() as u64;
        let mut lines = vec![format!(
            "{:.3} s: {} processes, {} exited",
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
        let losses = snapshot.losses.iter().filter(|loss| loss.count > 0);
        let losses = losses.map(|it| format!("Lost: {} {} ({})", it.count, it.cause, it.probe));
        for warning in losses.chain(self.unavailable.iter().cloned()) {
            let colored = stdout().is_terminal();
            lines.push(if colored { warning.yellow().to_string() } else { warning });
        }
        lines.join("\n") + "\n"
    }
}

fn draw(rows: &[Row], window: Window) -> String {
    let has_figures = |(.., figure): &&Column| rows.iter().any(|row| figure(row, window).is_some());
    let mut columns: Vec<_> = COLUMNS.iter().filter(has_figures).collect();
    let size = terminal::size().ok().filter(|_| stdout().is_terminal());
    for optional in OPTIONAL {
        let width: u16 = columns.iter().map(|(_, width, ..)| width + 1).sum();
        if size.is_some_and(|(available, _)| width + NAME_WIDTH > available) {
            columns.retain(|(name, ..)| *name != optional);
        }
    }
    let mut table = comfy_table::Table::new();
    table.load_preset(presets::NOTHING).style_text_only();
    let names = columns.iter().map(|(name, ..)| *name).chain(["NAME"]);
    table.set_header(names.map(|name| Cell::new(name).add_attribute(Attribute::Bold)));
    for row in rows {
        let text = |(name, _, decimals, figure): &&Column| match figure(row, window) {
            _ if *name == "THR" && row.exited => "exited".into(),
            Some(figure) => format!("{figure:.decimals$}"),
            None => "-".into(), // not known
        };
        let cells = columns.iter().map(text).chain([row.name.clone()]).map(Cell::new);
        table.add_row(cells.map(|cell| if row.exited { cell.fg(Color::DarkGrey) } else { cell }));
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 1));
        if let Some((_, width, ..)) = columns.get(i) {
            column.set_cell_alignment(CellAlignment::Right);
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + 1)));
        }
    }
    table.trim_fmt() + "\n"
}
