//! Does system calls on demand. `THREADS GOOD BAD` on standard input has so many threads
//! each make so many calls that succeed and that fail; the answer on standard output is
//! `done` and the ids of those threads. `again` starts the program once more, with the
//! same input and output; the answer is the pid. It ends with its input.

use std::{
    env, fs,
    io::{self, BufRead as _, Write as _},
    process::Command,
    thread,
};

/// Makes the calls; the id of the thread that did.
fn calls(good: u64, bad: u64) -> String {
    for _ in 0..good {
        std::hint::black_box(std::os::unix::process::parent_id());
    }
    for _ in 0..bad {
        fs::read_link("").unwrap_err(); // ENOENT, in one call
    }
    let thread = fs::read_link("/proc/thread-self").unwrap();
    thread.file_name().unwrap().to_str().unwrap().to_owned()
}

fn answer(text: &str) {
    let mut output = io::stdout();
    writeln!(output, "{text}").and_then(|()| output.flush()).unwrap();
}

fn main() {
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        if line == "again" {
            let mut child = Command::new(env::current_exe().unwrap()).spawn().unwrap();
            answer(&child.id().to_string());
            assert!(child.wait().unwrap().success());
            return;
        }
        let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        let &[threads, good, bad] = numbers.as_slice() else { panic!("{line}") };
        let ids = thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(|| calls(good, bad))).collect();
            let mut ids = vec![calls(good, bad)];
            ids.extend(others.into_iter().map(|thread| thread.join().unwrap()));
            ids
        });
        answer(&format!("done {}", ids.join(" ")));
    }
}
