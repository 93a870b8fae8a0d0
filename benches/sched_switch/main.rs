//! What a context switch costs with someone watching: two processes that pass a
//! byte to and fro on one CPU, in turns without and with a watcher.
//!
//! Times are CPU times of the two processes: what the programs at the tracepoint
//! take is charged to them, what else the machine does is not.
#![expect(clippy::print_stdout, reason = "a bench prints its results")]

#[path = "../support/mod.rs"]
mod support;

mod ping_pong;
mod watcher;

use anyhow::{Result, ensure};
use ping_pong::{PingPong, Run};
use support::{Quartiles, Role, Statistics, role};
use watcher::{Kind, Watcher};

const ROUNDS: usize = 21;
const ROUND_TRIPS: usize = 50_000;

fn main() -> Result<()> {
    match role() {
        Role::Bench => bench(),
        Role::Helper(_) => ping_pong::serve(),
        Role::None => Ok(()),
    }
}

/// All measurements of one kind of watcher.
struct Row {
    kind: Kind,
    measured: Vec<Measured>,
}

struct Measured {
    with: Run,
    /// With the watcher, by the mean of the runs without one before and after.
    cpu_ratio: f64,
    wall_ratio: f64,
    program_ns: Option<f64>,
}

fn bench() -> Result<()> {
    let mut rows: Vec<_> =
        watcher::available().into_iter().map(|kind| Row { kind, measured: Vec::new() }).collect();
    let mut game = PingPong::start()?;
    let mut before = game.play(ROUND_TRIPS)?;
    for _ in 0..ROUNDS {
        for row in &mut rows {
            let mut watcher = Watcher::start(row.kind)?;
            let with = watcher.during(&mut game, |game| game.play(ROUND_TRIPS))?;
            let program_ns = program_ns(&watcher, &mut game)?;
            drop(watcher);
            let after = game.play(ROUND_TRIPS)?;
            let ratio =
                |figure: fn(&Run) -> f64| figure(&with) * 2.0 / (figure(&before) + figure(&after));
            row.measured.push(Measured {
                cpu_ratio: ratio(|run| run.cpu_ns_per_switch),
                wall_ratio: ratio(|run| run.wall_ns_per_switch),
                with,
                program_ns,
            });
            before = after;
        }
    }
    report(&rows);
    Ok(())
}

/// Time per run of the watcher's program, by the kernel's statistics (which cost
/// something themselves: hence not in the run that is timed).
fn program_ns(watcher: &Watcher, game: &mut PingPong) -> Result<Option<f64>> {
    let _statistics = Statistics::enable()?;
    let before = watcher.programs()?;
    let switches = game.play(ROUND_TRIPS / 4)?.switches;
    let after = watcher.programs()?;
    let busiest = (after.iter())
        .map(|(id, now)| {
            let then = before.get(id).copied().unwrap_or_default();
            (now.runs - then.runs, now.time_ns - then.time_ns)
        })
        .max()
        .unwrap_or_default();
    let (runs, time_ns) = busiest;
    if !watcher.kind().has_program() {
        ensure!(runs < switches / 100, "a program of {} ran {runs} times", watcher.kind());
        return Ok(None);
    }
    ensure!(
        runs as f64 > 0.99 * switches as f64,
        "{} saw {runs} of {switches} switches: its cost means nothing",
        watcher.kind()
    );
    Ok(Some(time_ns as f64 / runs as f64))
}

fn report(rows: &[Row]) {
    let empty = rows.iter().find(|row| row.kind == Kind::Empty);
    println!(
        "a context switch: medians (quartiles) of {ROUNDS} rounds of {ROUND_TRIPS} round trips\n\
         {:26} {:>17} {:>17} {:>22} {:>22} {:>22}",
        "watcher",
        "program, ns",
        "net of empty",
        "CPU ns",
        "CPU with / without",
        "wall with / without",
    );
    for row in rows {
        let of = |figure: fn(&Measured) -> f64| Quartiles::of(row.measured.iter().map(figure));
        let net = empty.map(|empty| {
            let net =
                |(this, empty): (&Measured, &Measured)| Some(this.program_ns? - empty.program_ns?);
            row.measured.iter().zip(&empty.measured).map(net).collect()
        });
        println!(
            "{:26} {:>17} {:>17} {:22.0} {:22.3} {:22.3}",
            row.kind.to_string(),
            quartiles(row.measured.iter().map(|this| this.program_ns).collect()),
            quartiles(net.flatten()),
            of(|this| this.with.cpu_ns_per_switch),
            of(|this| this.cpu_ratio),
            of(|this| this.wall_ratio),
        );
    }
}

fn quartiles(values: Option<Vec<f64>>) -> String {
    values.map_or_else(|| "-".to_owned(), |values| format!("{:.0}", Quartiles::of(values)))
}
