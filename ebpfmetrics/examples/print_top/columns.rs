//! The columns of the tables of processes and cgroups, and of devices.

use std::time::Duration;

use ebpfmetrics::{
    Window,
    disk::{DiskDevice, DiskOperation},
};

use crate::rows::Row;

/// What a cell shows.
pub(crate) enum Value {
    /// A figure with so many decimals.
    Number(f64, usize),
    Text(String),
    Unknown,
}

use Value::{Number, Text, Unknown};

/// A column of a table whose rows are of type `R`.
pub(crate) struct Column<R: 'static> {
    pub(crate) name: &'static str,
    pub(crate) width: u16,
    pub(crate) meaning: &'static str,
    pub(crate) value: fn(&R, Window) -> Value,
}

const fn column<R>(
    name: &'static str,
    width: u16,
    meaning: &'static str,
    value: fn(&R, Window) -> Value,
) -> Column<R> {
    Column { name, width, meaning, value }
}

const MEBIBYTE: f64 = (1 << 20) as f64;

fn count(value: Option<impl Into<f64>>) -> Value {
    value.map_or(Unknown, |value| Number(value.into(), 0))
}

fn mebibytes(bytes: Option<u64>) -> Value {
    bytes.map_or(Unknown, |bytes| Number(bytes as f64 / MEBIBYTE, 1))
}

fn percent(time: Option<Duration>, window: Window) -> Value {
    time.map_or(Unknown, |time| Number(window.percent(time), 1))
}

fn per_second(count: Option<u64>, window: Window) -> Value {
    count.map_or(Unknown, |count| Number(window.per_second(count), 0))
}

fn mebibytes_per_second(bytes: Option<u64>, window: Window) -> Value {
    bytes.map_or(Unknown, |bytes| Number(window.per_second(bytes) / MEBIBYTE, 1))
}

fn text(value: Option<impl ToString>) -> Value {
    value.map_or(Unknown, |value| Text(value.to_string()))
}

/// Columns of processes and cgroups.
pub(crate) const COLUMNS: &[Column<Row>] = &[
    column("PID", 7, "process id", |row, _| count(row.id.map(|id| id.pid))),
    column("PPID", 7, "process id of the parent", |row, _| {
        count(row.info.and_then(|info| info.parent).map(|parent| parent.pid))
    }),
    column("PROCS", 6, "live processes of a cgroup", |row, _| count(row.members)),
    column("UID", 5, "real user id", |row, _| count(row.info.and_then(|info| info.uid))),
    column("THR", 4, "threads", |row, _| count(row.info.map(|info| info.threads))),
    column("S", 1, "state as in ps; X has ended", |row, _| {
        text(row.info.map(|info| if info.exited { 'X' } else { info.state.letter() }))
    }),
    column("NI", 3, "nice value", |row, _| count(row.info.and_then(|info| info.nice))),
    column("P", 3, "CPU that it last ran on", |row, _| {
        count(row.info.and_then(|info| info.last_cpu))
    }),
    column("%CPU", 5, "CPU time in percent of one CPU", |row, window| {
        percent(row.cpu.map(|cpu| cpu.cpu_time), window)
    }),
    column("%USR", 5, "CPU time in user mode", |row, window| {
        percent(row.cpu.map(|cpu| cpu.user), window)
    }),
    column("%SYS", 5, "CPU time in the kernel", |row, window| {
        percent(row.cpu.map(|cpu| cpu.system), window)
    }),
    column("%WAIT", 5, "time that its threads waited for a CPU", |row, window| {
        percent(row.cpu.and_then(|cpu| cpu.run_queue_wait), window)
    }),
    column("CSW/s", 6, "context switches", |row, window| {
        let switches =
            |cpu: ebpfmetrics::CpuUsage| cpu.voluntary_switches + cpu.involuntary_switches;
        per_second(row.cpu.map(switches), window)
    }),
    column("TIME", 9, "CPU time since it began, in s", |row, _| {
        row.cpu_total.map_or(Unknown, |time| Number(time.as_secs_f64(), 2))
    }),
    column("VIRT", 8, "virtual memory, MiB", |row, _| {
        mebibytes(row.mem.and_then(|mem| mem.virtual_bytes))
    }),
    column("RSS", 7, "resident set at the end of the interval, MiB", |row, _| {
        mebibytes(row.mem.and_then(|mem| mem.resident_bytes))
    }),
    column("PEAK", 7, "largest resident set within the interval, MiB", |row, _| {
        mebibytes(row.mem.and_then(|mem| mem.resident_peak_bytes))
    }),
    column("SWAP", 7, "swapped out, MiB", |row, _| {
        mebibytes(row.mem.and_then(|mem| mem.swap_bytes))
    }),
    column("FLT/s", 6, "major page faults", |row, window| {
        per_second(row.mem.map(|mem| mem.major_faults), window)
    }),
    column("RD/s", 6, "read from disks, MiB/s", |row, window| {
        mebibytes_per_second(row.disk.map(|disk| disk.read_bytes), window)
    }),
    column("WR/s", 6, "written to disks, MiB/s", |row, window| {
        mebibytes_per_second(row.disk.map(|disk| disk.written_bytes), window)
    }),
    column("RDCH/s", 6, "read by system calls, from anything, MiB/s", |row, window| {
        mebibytes_per_second(row.read_chars, window)
    }),
    column("WRCH/s", 6, "written by system calls, to anything, MiB/s", |row, window| {
        mebibytes_per_second(row.written_chars, window)
    }),
    column("NAME", 15, "name of the process, or path of the cgroup", |row, _| {
        Text(row.indented(&row.name))
    }),
    column(
        "COMMAND",
        15,
        "command line, or the name in brackets where it is not known",
        |row, _| match &row.command {
            Some(command) => Text(row.indented(command)),
            None => Text(row.indented(&format!("[{}]", row.name))),
        },
    ),
];

/// What a wide terminal shows.
pub(crate) const DEFAULT: &[&str] = &[
    "PID", "PROCS", "UID", "THR", "S", "NI", "%CPU", "%USR", "%SYS", "%WAIT", "CSW/s", "TIME",
    "RSS", "PEAK", "RD/s", "WR/s", "NAME",
];

/// Left out, in this order, where the terminal is too narrow for the default.
pub(crate) const OPTIONAL: &[&str] = &["CSW/s", "NI", "TIME", "UID", "%SYS", "%USR", "THR", "PEAK"];

/// Finds a column by its name, without `%` and `/s`, in any case.
pub(crate) fn parse(name: &str) -> Result<&'static Column<Row>, String> {
    let key = |name: &str| name.trim_start_matches('%').trim_end_matches("/s").to_lowercase();
    let found = COLUMNS.iter().find(|column| key(column.name) == key(name));
    found.ok_or_else(|| {
        let names: Vec<_> = COLUMNS.iter().map(|column| key(column.name)).collect();
        format!("the columns are {}", names.join(", "))
    })
}

/// The columns with their meaning, for `--help`.
pub(crate) fn help() -> String {
    let lines = COLUMNS.iter().map(|column| format!("  {:<8} {}", column.name, column.meaning));
    format!("Columns:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

fn await_ms(device: &DiskDevice, operation: DiskOperation) -> Value {
    let latency = device.latencies.iter().find(|latency| latency.operation == operation);
    let mean = latency.and_then(|latency| latency.mean());
    mean.map_or(Unknown, |mean| Number(mean.as_secs_f64() * 1e3, 2))
}

/// Columns of devices, named as those of `iostat -x`.
pub(crate) const DEVICE_COLUMNS: &[Column<DiskDevice>] = &[
    column("r/s", 6, "reads", |device, window| per_second(Some(device.usage.reads), window)),
    column("w/s", 6, "writes", |device, window| per_second(Some(device.usage.writes), window)),
    column("d/s", 5, "discards", |device, window| per_second(Some(device.usage.discards), window)),
    column("rMiB/s", 6, "read", |device, window| {
        mebibytes_per_second(Some(device.usage.read_bytes), window)
    }),
    column("wMiB/s", 6, "written", |device, window| {
        mebibytes_per_second(Some(device.usage.written_bytes), window)
    }),
    column("r_await", 7, "mean time of a read, ms", |device, _| {
        await_ms(device, DiskOperation::Read)
    }),
    column("w_await", 7, "mean time of a write, ms", |device, _| {
        await_ms(device, DiskOperation::Write)
    }),
    column(
        "aqu-sz",
        6,
        "mean number of operations in the queue or in progress",
        |device, window| Number(device.average_depth(window), 2),
    ),
    column("%util", 5, "time with any operation, by the kernel's estimate", |device, window| {
        device.busy_percent(window).map_or(Unknown, |it| Number(it, 1))
    }),
    column("DEVICE", 10, "name; stacked devices repeat the I/O of those below", |device, _| {
        let note = if device.stacked { " (stacked)" } else { "" };
        Text(format!("{}{note}", device.name))
    }),
];
