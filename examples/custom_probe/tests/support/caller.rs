//! Does system calls on demand: `THREADS GOOD BAD` on standard input, `done` on standard
//! output once each thread has made so many calls that succeed and that fail; ends with
//! its input.

use std::{
    io::{BufRead as _, Write as _},
    thread,
};

fn calls(good: u64, bad: u64) {
    for _ in 0..good {
        std::hint::black_box(std::os::unix::process::parent_id());
    }
    for _ in 0..bad {
        std::fs::read_link("").unwrap_err(); // ENOENT, in one call
    }
}

fn main() {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        let &[threads, good, bad] = numbers.as_slice() else { panic!("{line}") };
        thread::scope(|scope| {
            (1..threads).for_each(|_| drop(scope.spawn(|| calls(good, bad))));
            calls(good, bad);
        });
        println!("done");
        std::io::stdout().flush().unwrap();
    }
}
