//! Prints what happens to the processes of the machine, a line each, until Ctrl-C.
//!
//! ```text
//! cargo run --release --example watch_events -- --threshold-mib 500
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use ebpfmetrics::{CpuProbe, Event, Events, Kernel, MemProbe, Probe as _, kit::TaskProbe as _};

#[derive(Parser)]
struct Arguments {
    /// Ends after so many events
    #[arg(long)]
    count: Option<u64>,
    /// Tells processes that hold more than this
    #[arg(long)]
    threshold_mib: Option<u64>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let kernel = Kernel::read()?;
    // probes first: they have the totals of a process when its end is told
    let mut cpu = CpuProbe::builder().load_on(&kernel)?;
    let mut mem = MemProbe::builder().load_on(&kernel)?;
    let mut builder = Events::builder().started(true).executed(true).exited(true).oom_kills(true);
    if let Some(mib) = arguments.threshold_mib {
        builder = builder.memory_threshold(mib << 20);
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
            print(&event, &cpu, &mem)?;
        }
        // makes room for further totals; who exits meanwhile has them in these snapshots
        if exits > 1000 {
            exits = 0;
            cpu.reset()?;
            mem.reset()?;
        }
    }
    println!("lost: {:?}", events.losses()?);
    Ok(())
}

fn print(event: &Event, cpu: &CpuProbe, mem: &MemProbe) -> anyhow::Result<()> {
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
            let time = cpu.final_usage(process.id)?.map(|usage| usage.cpu_time);
            let peak = mem.final_usage(process.id)?.and_then(|usage| usage.resident_peak_bytes);
            println!("exited, {exit_status}: {time:?} of CPU time, {peak:?} bytes at most");
        }
        Event::MemoryThreshold { resident_bytes, .. } => println!("holds {resident_bytes} bytes"),
        Event::OomKilled { .. } => println!("killed for want of memory"),
        Event::Lost { events } => println!("{events} events lost"),
        _ => println!("{event:?}"),
    }
    Ok(())
}
