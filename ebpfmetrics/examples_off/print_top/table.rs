//! Text for people.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    io::{IsTerminal, stdout},
    time::Duration,
};

use comfy_table::{Attribute, Cell, CellAlignment, Color, ColumnConstraint, Table, Width, presets};
use crossterm::style::Stylize;
use ebpfmetrics::{
    CgroupHierarchy, Cgroups, CpuUsage, Degraded, DiskCounters, Group, JoinedProcess, MemUsage,
    ProcessInfo, Window, group_by,
};

use crate::{Interval, Options, Sort};

/// The lines above the table: the machine as a whole, and what is missing.
pub(crate) fn header(interval: &Interval, degraded: &[Degraded]) -> String {
    let (cpu, mem, disk) = &interval.parts;
    let (window, cpus) = (interval.window, cpu.online_cpus);
    let machine = window.duration() * cpus as u32;
    let exited = cpu.processes.iter().filter(|process| process.info.exited).count();
    let interrupted = cpu.cpus.iter().map(|cpu| cpu.interrupted).sum();
    let (memory, disks) = (mem.total(), disk.total());
    let mut header = format!(
        "{:.3} s: {} processes, {} more exited\n\
         {cpus} CPUs: {:.1} % busy, {} % idle, {} % interrupted or stolen\n\
         Memory: {} MiB anonymous, {} MiB swapped out, {} minor and {} major faults\n\
         Disks: {} reads, {} MiB; {} writes, {} MiB; {} flushes\n",
        window.duration().as_secs_f64(),
        cpu.processes.len() - exited,
        exited as u64 + cpu.folded.processes,
        cpu.total().percent_of_machine(window, cpus),
        cpu.idle().map_or("?".into(), |idle| percent(idle, machine)),
        percent(interrupted, machine),
        mebibytes(memory.resident_anon_bytes),
        mebibytes(memory.swap_bytes),
        memory.minor_faults,
        memory.major_faults,
        disks.reads,
        mebibytes(Some(disks.read_bytes)),
        disks.writes,
        mebibytes(Some(disks.written_bytes)),
        disks.flushes,
    );
    let killed = mem
        .oom_killed()
        .map(|process| format!("Killed for want of memory: {} {}", process.id, process.info.comm));
    let lost = interval.losses.iter().filter(|(_, count)| *count > 0);
    let lost = lost.map(|(cause, count)| format!("Lost: {count} {cause}"));
    let missing = degraded.iter().map(|it| format!("Not known: {} ({})", it.feature, it.reason));
    for warning in killed.chain(lost).chain(missing) {
        let color = stdout().is_terminal();
        header += &if color { warning.yellow().to_string() } else { warning };
        header.push('\n');
    }
    header
}

fn percent(part: Duration, whole: Duration) -> String {
    format!("{:.1}", part.as_secs_f64() / whole.as_secs_f64() * 100.0)
}

/// Threads of the kernel have none.
fn mebibytes(bytes: Option<u64>) -> String {
    bytes.map_or("-".into(), |bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 20)))
}

const COLUMNS: [(&str, u16); 13] = [
    // At least so wide, for steady columns.
    ("PID", 7),
    ("THR", 6),
    ("UID", 5),
    ("%CPU", 5),
    ("%USR", 5),
    ("%SYS", 5),
    ("%WAIT", 5),
    ("CSW/s", 6),
    ("RSS", 7),
    ("PEAK", 7),
    ("RD/s", 6),
    ("WR/s", 6),
    ("COMM", 15),
];

pub(crate) fn table(
    interval: &Interval,
    options: &Options,
    cgroups_of: Option<&CgroupHierarchy>,
    limit: usize,
) -> String {
    let mut rows = match cgroups_of {
        Some(hierarchy) => cgroups(interval, &Cgroups::of(hierarchy)),
        None => processes(interval, options),
    };
    rows.sort_by_key(|row| (Reverse(row.rank(options.sort)), row.pid));

    let names = COLUMNS.map(|(name, _)| match name {
        "THR" if options.threads => "TID",
        "THR" if cgroups_of.is_some() => "PROCS",
        "COMM" if cgroups_of.is_some() => "CGROUP",
        name => name,
    });
    let mut table = Table::new();
    table.style_text_only();
    table
        .load_preset(presets::NOTHING)
        .set_header(names.map(|name| Cell::new(name).add_attribute(Attribute::Bold)))
        .add_rows(rows.iter().take(limit).map(|row| row.cells(interval.window)));
    for (column, (name, width)) in table.column_iter_mut().zip(COLUMNS) {
        let side = if name == "COMM" { CellAlignment::Left } else { CellAlignment::Right };
        column.set_padding((0, 1)).set_cell_alignment(side);
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + 1)));
    }
    table.trim_fmt() + "\n"
}

/// A row for each cgroup that has anybody or did anything.
fn cgroups(interval: &Interval, cgroups: &Cgroups) -> Vec<Row> {
    fn id(info: &ProcessInfo) -> Option<u64> {
        Some(info.cgroup_id.unwrap_or_default()) // None has 0.
    }
    let (cpu, mem, disk) = &interval.parts;
    let mut cpu = group_by(cpu, |row| id(&row.info)).groups;
    let mut mem = group_by(mem, |row| id(&row.info)).groups;
    let mut disk = group_by(disk, |row| id(&row.info)).groups;
    let ids: BTreeSet<u64> = cpu.keys().chain(mem.keys()).chain(disk.keys()).copied().collect();
    let row = |id: u64| {
        let Group { usage, alive, .. } = cpu.remove(&id).unwrap_or_default();
        Row {
            pid: None,
            count: alive.to_string(),
            uid: None,
            name: match cgroups.path(id) {
                Some(path) => path.display().to_string(),
                None if id == 0 => "not known".into(),
                None => format!("cgroup {id}, gone"),
            },
            exited: alive == 0,
            cpu: usage,
            mem: mem.remove(&id).unwrap_or_default().usage,
            disk: disk.remove(&id).unwrap_or_default().usage.total,
        }
    };
    ids.into_iter().map(row).collect()
}

fn processes(interval: &Interval, options: &Options) -> Vec<Row> {
    let rows = interval.processes().map(|process| {
        let JoinedProcess { id, info, rows: (cpu, mem, disk), .. } = process;
        Row {
            cpu: cpu.map(|row| row.usage).unwrap_or_default(),
            mem: mem.map(|row| row.usage).unwrap_or_default(),
            disk: disk.map(|row| row.usage.total).unwrap_or_default(),
            ..Row::new(id.pid, info)
        }
    });
    let mut rows: Vec<Row> = rows.filter(|row| row.exited || !options.threads).collect();
    if options.threads {
        // What threads share is shown with each of them.
        let (cpu, mem, disk) = &interval.parts;
        rows.extend(cpu.threads.iter().filter_map(|thread| {
            let pid = thread.process.pid;
            Some(Row {
                count: thread.id.tid.to_string(),
                name: thread.comm.to_string(),
                cpu: thread.usage,
                mem: mem.process(pid).map(|row| row.usage).unwrap_or_default(),
                disk: disk.process(pid).map(|row| row.usage.total).unwrap_or_default(),
                ..Row::new(pid, &cpu.process(pid)?.info)
            })
        }));
    }
    rows
}

/// A process, one of its threads, or a cgroup.
struct Row {
    pid: Option<u32>,
    count: String, // Of threads, or which of them; of processes.
    uid: Option<u32>,
    name: String,
    exited: bool,
    cpu: CpuUsage,
    mem: MemUsage,
    disk: DiskCounters,
}

impl Row {
    fn new(pid: u32, info: &ProcessInfo) -> Self {
        let &ProcessInfo { threads, uid, comm, exited, .. } = info;
        let count = if exited { "exited".into() } else { threads.to_string() };
        let (cpu, mem, disk) = Default::default();
        let name = comm.to_string();
        Self { pid: Some(pid), count, uid: Some(uid), name, exited, cpu, mem, disk }
    }

    fn rank(&self, sort: Sort) -> u128 {
        let cpu = &self.cpu;
        match sort {
            Sort::Cpu => cpu.cpu_time.as_nanos(),
            Sort::User => cpu.user.as_nanos(),
            Sort::System => cpu.system.as_nanos(),
            Sort::Wait => cpu.run_queue_wait.unwrap_or_default().as_nanos(),
            Sort::Switches => self.switches().into(),
            Sort::Mem => {
                self.mem.resident_peak_bytes.max(self.mem.resident_bytes).unwrap_or(0).into()
            }
            Sort::Disk => (self.disk.read_bytes + self.disk.written_bytes).into(),
            Sort::Pid => 0,
        }
    }

    fn switches(&self) -> u64 {
        self.cpu.voluntary_switches + self.cpu.involuntary_switches
    }

    fn cells(&self, window: Window) -> [Cell; COLUMNS.len()] {
        let (cpu, length) = (&self.cpu, window.duration());
        let number = |it: Option<u32>| it.map_or(String::new(), |it| it.to_string());
        let per_second = |count: u64| format!("{:.0}", window.per_second(count));
        let mebibytes_per_second =
            |bytes: u64| format!("{:.1}", window.per_second(bytes) / f64::from(1 << 20));
        let texts = [
            number(self.pid),
            self.count.clone(),
            number(self.uid),
            percent(cpu.cpu_time, length),
            percent(cpu.user, length),
            percent(cpu.system, length),
            cpu.run_queue_wait.map_or("?".into(), |wait| percent(wait, length)),
            per_second(self.switches()),
            mebibytes(self.mem.resident_bytes),
            mebibytes(self.mem.resident_peak_bytes),
            mebibytes_per_second(self.disk.read_bytes),
            mebibytes_per_second(self.disk.written_bytes),
            self.name.replace(char::is_control, "?"), // It may hold anything.
        ];
        let dim = |cell: Cell| if self.exited { cell.fg(Color::DarkGrey) } else { cell };
        texts.map(|text| dim(Cell::new(text)))
    }
}
