//! Two processes on one CPU that wake each other in turn: two context switches
//! per round trip, and little else.

use std::{
    io::{PipeReader, PipeWriter, Read as _, Write as _, pipe},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use procfs::process::Process;

use crate::support::{self, Helper, pin_to_last_cpu, process_cpu_ns};

/// The two processes, alive for the whole bench.
pub(crate) struct PingPong {
    helper: Helper,
    pids: [u32; 2],
}

/// What both did together.
pub(crate) struct Run {
    pub(crate) cpu_ns: u64,
    pub(crate) switches: u64,
    /// In the best of its parts: other work on the machine can only disturb.
    pub(crate) cpu_ns_per_switch: f64,
    pub(crate) wall_ns_per_switch: f64,
}

const PARTS: usize = 8;

impl PingPong {
    pub(crate) fn start() -> Result<Self> {
        let mut this = Self { helper: Helper::start("ping-pong")?, pids: [0; 2] };
        let [_, _, _, ping, pong] = this.helper.ask::<u64, 5>(1)?;
        this.pids = [ping as u32, pong as u32];
        Ok(this)
    }

    pub(crate) fn play(&mut self, round_trips: usize) -> Result<Run> {
        let mut run = Run {
            cpu_ns: 0,
            switches: 0,
            cpu_ns_per_switch: f64::INFINITY,
            wall_ns_per_switch: f64::INFINITY,
        };
        for _ in 0..PARTS {
            let [cpu_ns, switches, wall_ns, ..] = self.helper.ask::<u64, 5>(round_trips / PARTS)?;
            let per_switch = |ns: u64| ns as f64 / switches as f64;
            run.cpu_ns += cpu_ns;
            run.switches += switches;
            run.cpu_ns_per_switch = run.cpu_ns_per_switch.min(per_switch(cpu_ns));
            run.wall_ns_per_switch = run.wall_ns_per_switch.min(per_switch(wall_ns));
        }
        Ok(run)
    }

    pub(crate) fn pids(&self) -> [u32; 2] {
        self.pids
    }
}

/// The helper's side.
pub(crate) fn serve() -> Result<()> {
    pin_to_last_cpu()?;
    let (ping_reader, mut ping_writer) = pipe()?;
    let (mut pong_reader, pong_writer) = pipe()?;
    #[expect(unsafe_code, reason = "the other player shares the two pipes")]
    // SAFETY: this process has one thread, so the child may do what it likes.
    let pong = match unsafe { libc::fork() } {
        -1 => bail!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            drop((ping_writer, pong_reader));
            return answer(ping_reader, pong_writer);
        }
        pong => pong,
    };
    drop((ping_reader, pong_writer));
    let (me, other) = (Process::myself()?, Process::new(pong)?);
    let mut byte = [0];
    support::serve(|round_trips| {
        let switches_before = switches(&me)? + switches(&other)?;
        // exact: the other one sleeps
        let other_before = other.schedstat()?.sum_exec_runtime;
        let (start, before) = (Instant::now(), process_cpu_ns());
        for _ in 0..round_trips {
            ping_writer.write_all(&byte)?;
            pong_reader.read_exact(&mut byte)?;
        }
        let cpu_ns = process_cpu_ns() - before;
        let wall_ns = start.elapsed().as_nanos();
        let cpu_ns = cpu_ns + other.schedstat()?.sum_exec_runtime - other_before;
        let switches = switches(&me)? + switches(&other)? - switches_before;
        Ok(format!("{cpu_ns} {switches} {wall_ns} {} {pong}", std::process::id()))
    })
}

fn answer(mut ping: PipeReader, mut pong: PipeWriter) -> Result<()> {
    let mut byte = [0];
    while ping.read(&mut byte)? > 0 {
        pong.write_all(&byte)?;
    }
    Ok(())
}

fn switches(process: &Process) -> Result<u64> {
    let status = process.status()?;
    let switches = status.voluntary_ctxt_switches.zip(status.nonvoluntary_ctxt_switches);
    switches.map(|(one, other)| one + other).context("no switches in status")
}
