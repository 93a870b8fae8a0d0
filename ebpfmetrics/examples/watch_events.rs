//! Prints one line per event until Ctrl-C: processes that start, exec and exit, memory
//! thresholds, OOM kills and slow I/O.
//!
//! ```text
//! cargo run --release --example watch_events -- --threshold-mib 500 --slow-io 100
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use ebpfmetrics::{
    CpuProbe, DiskProbe, Event, Events, Kernel, MemProbe, Probe as _, ProbeSet, kit::HandleOf,
};

/// Prints one line per event: starts, execs and exits of processes, and more on request
#[derive(Parser)]
#[command(name = "watch_events", version)]
struct Options {
    /// Stop after N events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Report processes whose resident set grows to this size
    #[arg(long, value_name = "MIB")]
    threshold_mib: Option<u64>,
    /// Report I/O that takes at least this long
    #[arg(long, value_name = "MS")]
    slow_io: Option<u64>,
}

/// The probes that have the totals of a process when its exit is reported.
struct Probes {
    set: ProbeSet,
    cpu: HandleOf<ebpfmetrics::cpu::CpuProbeBuilder>,
    mem: HandleOf<ebpfmetrics::mem::MemProbeBuilder>,
    disk: HandleOf<ebpfmetrics::disk::DiskProbeBuilder>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let kernel = Kernel::read()?;
    let mut disk = DiskProbe::builder();
    if let Some(ms) = options.slow_io {
        disk = disk.slow_io(Duration::from_millis(ms));
    }
    // Loaded before the events: every exit that is reported then has totals.
    let mut set = ProbeSet::builder().build_on(&kernel)?;
    let mut probes = Probes {
        cpu: set.add_on(CpuProbe::builder(), &kernel)?,
        mem: set.add_on(MemProbe::builder(), &kernel)?,
        disk: set.add_on(disk, &kernel)?,
        set,
    };
    let mut builder = Events::builder().started(true).executed(true).exited(true).oom_kills(true);
    if let Some(mib) = options.threshold_mib {
        builder = builder.memory_threshold(mib << 20);
    }
    if options.slow_io.is_some() {
        builder = builder.slow_io_of(&probes.set, probes.disk)?; // MERGE: the disk probe's final name for this
    }
    let mut events = builder.load_on(&kernel)?;
    drop(kernel);

    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    ctrlc::set_handler(move || stopped.store(true, Ordering::Relaxed))?;
    let mut left = options.count.unwrap_or(u64::MAX);
    let mut exits = 0;
    while left > 0 && !stop.load(Ordering::Relaxed) {
        events.wait(Duration::from_millis(200))?;
        for event in events.drain().take(left.min(1000) as usize) {
            left -= 1;
            exits += u64::from(matches!(event, Event::ProcessExited { .. }));
            print(&event, &probes)?;
        }
        if exits > 1000 {
            exits = 0;
            probes.set.reset()?; // removes the totals of processes that have exited
        }
    }
    println!("lost: {:?}", events.losses()?);
    Ok(())
}

fn print(event: &Event, Probes { set, cpu, mem, disk }: &Probes) -> anyhow::Result<()> {
    if let Some(process) = event.process() {
        let seconds = process.time_ns as f64 / 1e9;
        print!("{seconds:14.6} {:>7} {:<15} ", process.id, process.info.comm);
    }
    match event {
        Event::ProcessStarted { process } => {
            println!("started by {}", process.info.parent.unwrap_or_default());
        }
        Event::ProcessExecuted { .. } => println!("exec"),
        Event::ProcessExited { process, exit_status } => {
            print!("{exit_status}");
            if let Some(usage) = set.final_usage(*cpu, process.id)? {
                print!(", {:?} of CPU time", usage.cpu_time);
            }
            let memory = set.final_usage(*mem, process.id)?;
            if let Some(peak) = memory.and_then(|usage| usage.resident_peak_bytes) {
                print!(", peak {} KiB", peak >> 10);
            }
            if let Some(usage) = set.final_usage(*disk, process.id)? {
                let (read, written) = (usage.total.read_bytes, usage.total.written_bytes);
                print!(", {} KiB read, {} KiB written", read >> 10, written >> 10);
            }
            println!();
        }
        Event::MemoryThreshold { resident_bytes, .. } => {
            println!("resident set: {} MiB", resident_bytes >> 20);
        }
        Event::OomKilled { .. } => println!("killed: out of memory"),
        Event::SlowIo { io, .. } => println!(
            "slow {:?} of {} bytes on {}: {:?} in the queue, {:?} on the device",
            io.operation, io.bytes, io.device, io.queue_time, io.device_time
        ),
        Event::Lost { events } => println!("{events} events lost"),
        _ => println!("{event:?}"),
    }
    Ok(())
}
