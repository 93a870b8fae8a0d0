//! What a context switch costs with someone watching: two processes that pass a
//! byte to and fro on one CPU, in pairs of runs without and with a watcher.
//!
//! Times are CPU times of the two processes: what the programs at the tracepoint
//! take is charged to them, what else the machine does is not.
#![expect(clippy::print_stdout, reason = "a bench tells its results")]

#[path = "../support/mod.rs"]
mod support;

mod ping_pong;
mod watcher;

use anyhow::{Result, ensure};
use ebpfmetrics::Statistics;
use ping_pong::{PingPong, Run};
use support::{Quartiles, Role, role};
use watcher::{Kind, Watcher};

const PAIRS: usize = 11;
const ROUND_TRIPS: usize = 100_000;

fn main() -> Result<()> {
    match role() {
        Role::Bench => bench(),
        Role::Helper(_) => ping_pong::serve(),
        Role::None => Ok(()),
    }
}

/// All pairs of one kind of watcher.
struct Row {
    kind: Kind,
    pairs: Vec<Pair>,
}

struct Pair {
    without: Run,
    with: Run,
    program_ns: Option<f64>,
}

fn bench() -> Result<()> {
    let mut rows: Vec<_> =
        watcher::available()?.into_iter().map(|kind| Row { kind, pairs: Vec::new() }).collect();
    let mut game = PingPong::start()?;
    game.play(ROUND_TRIPS)?;
    for pair in 0..PAIRS {
        for row in &mut rows {
            row.pairs.push(measure(&mut game, row.kind, pair % 2 == 0)?);
        }
    }
    report(&rows);
    Ok(())
}

fn measure(game: &mut PingPong, kind: Kind, without_first: bool) -> Result<Pair> {
    let before = without_first.then(|| game.play(ROUND_TRIPS)).transpose()?;
    let mut watcher = Watcher::start(kind)?;
    let with = watcher.during(game, |game| game.play(ROUND_TRIPS))?;
    let program_ns = program_ns(&watcher, game)?;
    drop(watcher);
    let without = before.map_or_else(|| game.play(ROUND_TRIPS), Ok)?;
    Ok(Pair { without, with, program_ns })
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
        "a context switch: medians (quartiles) of {PAIRS} pairs of {ROUND_TRIPS} round trips\n\
         {:26} {:>17} {:>17} {:>22} {:>22} {:>22}",
        "watcher", "program, ns", "net of empty", "CPU ns", "CPU with / without", "wall",
    );
    for row in rows {
        let of = |figure: fn(&Pair) -> f64| Quartiles::of(row.pairs.iter().map(figure));
        let net = empty.map(|empty| {
            let net = |(pair, empty): (&Pair, &Pair)| Some(pair.program_ns? - empty.program_ns?);
            row.pairs.iter().zip(&empty.pairs).map(net).collect()
        });
        println!(
            "{:26} {:>17} {:>17} {:22.0} {:22.3} {:22.3}",
            row.kind.to_string(),
            quartiles(row.pairs.iter().map(|pair| pair.program_ns).collect()),
            quartiles(net.flatten()),
            of(|pair| pair.with.cpu_ns_per_switch),
            of(|pair| pair.with.cpu_ns_per_switch / pair.without.cpu_ns_per_switch),
            of(|pair| pair.with.wall_ns_per_switch / pair.without.wall_ns_per_switch),
        );
    }
}

fn quartiles(values: Option<Vec<f64>>) -> String {
    values.map_or_else(|| "-".to_owned(), |values| format!("{:.0}", Quartiles::of(values)))
}
