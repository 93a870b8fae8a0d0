//! What a block I/O costs with the disk probe, beside other watchers of block I/O:
//! fio's random reads of 4 KiB on a loop device whose file lies in memory, 64 at a
//! time.
#![expect(clippy::print_stdout, reason = "a bench prints its results")]

#[path = "../support/mod.rs"]
mod support;
mod watcher;

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use ebpfmetrics_suite::LoopDevice;
use support::{Quartiles, Role, Statistics, role, tools::is_there};
use watcher::{Kind, Watcher};

const ROUNDS: usize = 11;
const SECONDS: u32 = 2;
const DEVICE_BYTES: u64 = 256 << 20;

fn main() -> Result<()> {
    match role() {
        Role::Bench => bench(),
        Role::Helper(_) | Role::None => Ok(()),
    }
}

/// What fio says of a run.
pub(crate) struct Run {
    pub(crate) reads: u64,
    pub(crate) per_second: f64,
    /// System time of fio and its children per read.
    pub(crate) system_ns: f64,
}

struct Row {
    kind: Kind,
    measured: Vec<Measured>,
}

struct Measured {
    per_second: f64,
    /// By the mean of the runs without a watcher before and after.
    ratio: f64,
    system_ratio: f64,
    /// ns of all its programs per read.
    programs_ns: Option<f64>,
}

fn bench() -> Result<()> {
    if !is_there("fio") {
        println!("SKIPPED all: there is no fio here");
        return Ok(());
    }
    // in memory, so that the device is as fast as can be
    let device = LoopDevice::new(Path::new("/dev/shm"), DEVICE_BYTES);
    let fio = |seconds| fio(&device.path(), seconds);
    let mut rows: Vec<_> =
        watcher::available().into_iter().map(|kind| Row { kind, measured: Vec::new() }).collect();
    let mut before = fio(SECONDS)?;
    for _ in 0..ROUNDS {
        for row in &mut rows {
            let mut watcher = Watcher::start(row.kind)?;
            let with = watcher.during(device.name(), || fio(SECONDS))?;
            let programs_ns = programs_ns(&watcher, || fio(SECONDS / 2))?;
            drop(watcher);
            let after = fio(SECONDS)?;
            let ratio =
                |figure: fn(&Run) -> f64| figure(&with) * 2.0 / (figure(&before) + figure(&after));
            row.measured.push(Measured {
                per_second: with.per_second,
                ratio: ratio(|run| run.per_second),
                system_ratio: ratio(|run| run.system_ns),
                programs_ns,
            });
            before = after;
        }
    }
    report(&rows);
    Ok(())
}

/// Time in the watcher's programs per read, by the kernel's statistics (which cost
/// something themselves: hence not in the run that is timed).
fn programs_ns(watcher: &Watcher, fio: impl FnOnce() -> Result<Run>) -> Result<Option<f64>> {
    let _statistics = Statistics::enable()?;
    let before = watcher.programs()?;
    let reads = fio()?.reads;
    let after = watcher.programs()?;
    let (mut busiest, mut time_ns) = (0, 0);
    for (id, now) in &after {
        let then = before.get(id).copied().unwrap_or_default();
        busiest = busiest.max(now.runs - then.runs);
        time_ns += now.time_ns - then.time_ns;
    }
    if watcher.kind() == Kind::Nobody {
        return Ok(None);
    }
    ensure!(
        busiest as f64 > 0.99 * reads as f64,
        "{} saw {busiest} of {reads} reads: its cost means nothing",
        watcher.kind()
    );
    Ok(Some(time_ns as f64 / reads as f64))
}

fn report(rows: &[Row]) {
    let empty = rows.iter().find(|row| row.kind == Kind::Empty);
    println!(
        "a read of 4 KiB at depth 64: medians (quartiles) of {ROUNDS} rounds of {SECONDS} s\n\
         {:30} {:>20} {:>20} {:>26} {:>20} {:>20}",
        "watcher",
        "programs, ns",
        "net of empty",
        "reads per second",
        "reads with/without",
        "system time w/w",
    );
    for row in rows {
        let of = |figure: fn(&Measured) -> f64| Quartiles::of(row.measured.iter().map(figure));
        let net = empty.map(|empty| {
            let net = |(this, empty): (&Measured, &Measured)| {
                Some(this.programs_ns? - empty.programs_ns?)
            };
            row.measured.iter().zip(&empty.measured).map(net).collect()
        });
        println!(
            "{:30} {:>20} {:>20} {:26.0} {:20.3} {:20.3}",
            row.kind.to_string(),
            quartiles(row.measured.iter().map(|this| this.programs_ns).collect()),
            quartiles(net.flatten()),
            of(|this| this.per_second),
            of(|this| this.ratio),
            of(|this| this.system_ratio),
        );
    }
}

fn quartiles(values: Option<Vec<f64>>) -> String {
    values.map_or_else(|| "-".to_owned(), |values| format!("{:.0}", Quartiles::of(values)))
}

fn fio(device: &Path, seconds: u32) -> Result<Run> {
    let output = Command::new("fio")
        .args(["--name=reads", "--rw=randread", "--bs=4k", "--direct=1", "--ioengine=libaio"])
        .args(["--iodepth=64", "--iodepth_batch=16", "--iodepth_batch_complete_min=16"])
        .args(["--time_based", "--norandommap", "--randrepeat=0", "--output-format=json"])
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--size={DEVICE_BYTES}"))
        .arg(format!("--filename={}", device.display()))
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let start = text.find('{').context("fio's report")?;
    let json: serde_json::Value = serde_json::from_str(&text[start..])?;
    let job = &json["jobs"][0];
    let figure = |value: &serde_json::Value| value.as_f64().context("fio's report");
    let reads = figure(&job["read"]["total_ios"])?;
    let runtime_ns = figure(&job["read"]["runtime"])? * 1e6;
    Ok(Run {
        reads: reads as u64,
        per_second: figure(&job["read"]["iops"])?,
        system_ns: figure(&job["sys_cpu"])? / 100.0 * runtime_ns / reads,
    })
}
