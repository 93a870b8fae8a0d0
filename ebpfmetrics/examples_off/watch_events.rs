//! Prints what happens to the processes of the machine, a line each, until Ctrl-C.
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
    CpuProbe, DiskProbe, Event, Events, Kernel, MemProbe, Probe as _, kit::TaskProbe as _,
};

#[derive(Parser)]
struct Arguments {
    /// Ends after so many events
    #[arg(long)]
    count: Option<u64>,
    /// Tells processes that hold more than this
    #[arg(long)]
    threshold_mib: Option<u64>,
    /// Tells I/O that takes longer than this
    #[arg(long, value_name = "MS")]
    slow_io: Option<u64>,
}

/// Who has the totals of a process when its end is told.
struct Probes {
    cpu: CpuProbe,
    mem: MemProbe,
    disk: DiskProbe,
}

impl Probes {
    /// Makes room for further totals; who exits meanwhile has them in these snapshots.
    fn reset(&mut self) -> ebpfmetrics::Result<()> {
        self.cpu.reset()?;
        self.mem.reset()?;
        self.disk.reset()?;
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let kernel = Kernel::read()?;
    let mut disk = DiskProbe::builder();
    if let Some(ms) = arguments.slow_io {
        disk = disk.slow_io(Duration::from_millis(ms));
    }
    // before the events: so a process is in their books when its end is told
    let mut probes = Probes {
        cpu: CpuProbe::builder().load_on(&kernel)?,
        mem: MemProbe::builder().load_on(&kernel)?,
        disk: disk.load_on(&kernel)?,
    };
    let mut builder = Events::builder().started(true).executed(true).exited(true).oom_kills(true);
    if let Some(mib) = arguments.threshold_mib {
        builder = builder.memory_threshold(mib << 20);
    }
    if arguments.slow_io.is_some() {
        builder = builder.slow_io(&probes.disk)?;
    }
    let mut events = builder.load_on(&kernel)?;
    drop(kernel);

    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    ctrlc::set_handler(move || stopped.store(true, Ordering::Relaxed))?;
    let mut left = arguments.count.unwrap_or(u64::MAX);
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
            probes.reset()?;
        }
    }
    println!("lost: {:?}", events.losses()?);
    Ok(())
}

fn print(event: &Event, probes: &Probes) -> anyhow::Result<()> {
    if let Some(process) = event.process() {
        let seconds = process.time_ns as f64 / 1e9;
        print!("{seconds:14.6} {:>7} {:<15} ", process.id.pid, process.info.comm);
    }
    match event {
        Event::ProcessStarted { process } => {
            let parent = process.info.parent.map_or(0, |parent| parent.pid);
            println!("started by {parent}");
        }
        Event::ProcessExecuted { .. } => println!("executed"),
        Event::ProcessExited { process, exit_status } => {
            let time = probes.cpu.final_usage(process.id)?.map_or(Duration::ZERO, |it| it.cpu_time);
            let memory = probes.mem.final_usage(process.id)?;
            let peak = memory.and_then(|usage| usage.resident_peak_bytes).unwrap_or_default();
            let disk = probes.disk.final_usage(process.id)?.unwrap_or_default().total;
            println!(
                "exited, {exit_status}: {time:?} of CPU time, at most {} KiB, {} KiB read, {} written",
                peak >> 10,
                disk.read_bytes >> 10,
                disk.written_bytes >> 10,
            );
        }
        Event::MemoryThreshold { resident_bytes, .. } => println!("holds {resident_bytes} bytes"),
        Event::OomKilled { .. } => println!("killed for want of memory"),
        Event::SlowIo { io, .. } => println!(
            "{:?} of {} bytes on {}: queued {:?}, on the device {:?}",
            io.operation, io.bytes, io.device, io.queue_time, io.device_time
        ),
        Event::Lost { events } => println!("{events} events lost"),
        _ => println!("{event:?}"),
    }
    Ok(())
}
