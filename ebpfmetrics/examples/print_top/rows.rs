//! Rows: processes, and sums of them by cgroup.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use ebpfmetrics::{
    Cgroups, CpuUsage, MemUsage, ProcessId, Snapshot, Window,
    disk::DiskCounters,
    group::group_by_cgroup,
    process::{CommandLines, ProcessInfo},
};

use crate::{
    Handles,
    columns::{Column, Value},
};

/// A process or a cgroup.
#[derive(Default)]
pub(crate) struct Row {
    /// `None` for a cgroup.
    pub(crate) id: Option<ProcessId>,
    pub(crate) info: Option<ProcessInfo>,
    /// Live processes of a cgroup.
    pub(crate) members: Option<u32>,
    pub(crate) name: String,
    pub(crate) command: Option<String>,
    /// Number of ancestors with a row above it.
    pub(crate) depth: usize,
    pub(crate) cpu: Option<CpuUsage>,
    /// Since the process began.
    pub(crate) cpu_total: Option<Duration>,
    pub(crate) mem: Option<MemUsage>,
    pub(crate) disk: Option<DiskCounters>,
    pub(crate) read_chars: Option<u64>,
    pub(crate) written_chars: Option<u64>,
}

impl Row {
    pub(crate) fn exited(&self) -> bool {
        self.info.is_some_and(|info| info.exited)
    }

    pub(crate) fn indented(&self, text: &str) -> String {
        "  ".repeat(self.depth) + text
    }

    /// 0 if it is not known.
    fn cgroup_id(&self) -> u64 {
        self.info.and_then(|info| info.cgroup_id).unwrap_or_default()
    }

    pub(crate) fn add(&mut self, row: &Self) {
        *self.members.get_or_insert(0) += u32::from(!row.exited());
        self.cpu = self.cpu.into_iter().chain(row.cpu).reduce(|sum, more| sum + more);
        self.mem = self.mem.into_iter().chain(row.mem).reduce(|sum, more| sum + more);
        self.disk = self.disk.into_iter().chain(row.disk).reduce(|sum, more| sum + more);
        let sum =
            |one: Option<u64>, more: Option<u64>| one.into_iter().chain(more).reduce(|a, b| a + b);
        self.read_chars = sum(self.read_chars, row.read_chars);
        self.written_chars = sum(self.written_chars, row.written_chars);
    }
}

/// Command lines can hold anything. Replaces what could disturb a terminal.
fn printable(text: &str) -> String {
    text.replace(|c: char| !matches!(c, ' '..='~'), "?")
}

pub(crate) fn processes(
    snapshot: &Snapshot,
    handles: Handles,
    commands: Option<&CommandLines>,
) -> Vec<Row> {
    let rows = snapshot.processes().map(|process| {
        let disk = handles.disk.map(|disk| &process[disk]);
        let command = commands.and_then(|commands| commands.get(process.id));
        Row {
            id: Some(process.id),
            info: Some(process.info),
            name: process.info.comm.to_string(), // escapes what could disturb a terminal
            command: command.map(|command| printable(&command.join(" "))),
            cpu: handles.cpu.map(|cpu| process[cpu]),
            cpu_total: handles.cpu.map(|cpu| process.total(cpu).cpu_time),
            mem: handles.mem.map(|mem| process[mem]),
            disk: disk.map(|disk| disk.total),
            read_chars: disk.and_then(|disk| disk.read_chars),
            written_chars: disk.and_then(|disk| disk.written_chars),
            ..Row::default()
        }
    });
    rows.collect()
}

/// Sums by cgroup. What was used before a process moved counts where it was used.
pub(crate) fn by_cgroup(
    rows: &[Row],
    snapshot: &Snapshot,
    handles: Handles,
    cgroups: &Cgroups,
) -> Vec<Row> {
    let mut groups = BTreeMap::<u64, Row>::new();
    rows.iter().for_each(|row| groups.entry(row.cgroup_id()).or_default().add(row));
    if let Some(cpu) = handles.cpu {
        for (id, group) in group_by_cgroup(&snapshot.of(cpu)).groups {
            groups.entry(id).or_default().cpu = Some(group.usage);
        }
    }
    if let Some(mem) = handles.mem {
        for (id, group) in group_by_cgroup(&snapshot.of(mem)).groups {
            groups.entry(id).or_default().mem = Some(group.usage);
        }
    }
    for (&id, group) in &mut groups {
        group.members.get_or_insert(0); // it moved on
        group.name = match cgroups.path(id) {
            Some(path) => printable(&path.to_string_lossy()),
            None if id == 0 => "(not known)".into(),
            None => format!("(deleted: {id})"),
        };
    }
    groups.into_values().collect()
}

/// Large figures come first, but PIDs and texts in ascending order.
pub(crate) fn sort(rows: &mut [Row], by: &Column<Row>, window: Window) {
    rows.sort_by(|a, b| match ((by.value)(a, window), (by.value)(b, window)) {
        _ if by.name == "PID" => a.id.cmp(&b.id),
        (Value::Number(a, _), Value::Number(b, _)) => b.total_cmp(&a),
        (Value::Text(a), Value::Text(b)) => a.cmp(&b),
        (Value::Unknown, Value::Unknown) => Ordering::Equal,
        (Value::Unknown, _) => Ordering::Greater,
        _ => Ordering::Less,
    });
}

/// Puts each process below its parent. Siblings keep their order.
pub(crate) fn arrange_as_forest(rows: Vec<Row>) -> Vec<Row> {
    let present: HashSet<_> = rows.iter().filter_map(|row| row.id).collect();
    let parent = |row: &Row| row.info?.parent.filter(|parent| present.contains(parent));
    let mut children = HashMap::<Option<ProcessId>, Vec<Row>>::new();
    for row in rows.into_iter().rev() {
        children.entry(parent(&row)).or_default().push(row);
    }
    let mut ordered = Vec::new();
    let mut next = children.remove(&None).unwrap_or_default();
    while let Some(row) = next.pop() {
        for mut child in children.remove(&row.id).unwrap_or_default() {
            child.depth = row.depth + 1;
            next.push(child);
        }
        ordered.push(row);
    }
    ordered
}
