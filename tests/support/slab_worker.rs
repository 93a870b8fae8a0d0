//! Processes for which the kernel allocates.

use std::{
    io::{self, BufRead as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixDatagram,
    },
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Error};

use crate::tell;

/// Opens and closes files by commands, one per line of input: `pipes N`, `threads N` (four
/// threads with N pipes each), `sockets N`, `hold N` (pipes) and `drop` (the held pipes).
/// Prints `done` and the ids of the threads that it started.
pub(crate) fn serve() -> anyhow::Result<()> {
    let mut held = Vec::with_capacity(10_000);
    tell("ready")?;
    for line in io::stdin().lines() {
        let line = line?;
        let (what, count) = line.split_once(' ').unwrap_or((&line, "1"));
        let count: usize = count.parse()?;
        let mut done = "done".to_owned();
        match what {
            "pipes" => pipes(count)?,
            "threads" => {
                let pipes = move || pipes(count).map(|()| rustix::thread::gettid());
                for thread in [(); 4].map(|()| thread::spawn(pipes)) {
                    let tid = thread.join().expect("opening does not panic")?;
                    done.push_str(&format!(" {}", tid.as_raw_nonzero()));
                }
            }
            "sockets" => (0..count).try_for_each(|_| UnixDatagram::pair().map(drop))?,
            "hold" => (0..count).try_for_each(|_| io::pipe().map(|pipe| held.push(pipe)))?,
            "drop" => held.clear(),
            other => anyhow::bail!("{other}?"),
        }
        tell(&done)?;
    }
    Ok(())
}

fn pipes(count: usize) -> io::Result<()> {
    (0..count).try_for_each(|_| io::pipe().map(drop))
}

/// Sends datagrams on every line of input to a process that it starts.
pub(crate) fn send(count: u32) -> anyhow::Result<()> {
    let (ours, theirs) = UnixDatagram::pair()?;
    let mut receiver = Command::new(std::env::current_exe()?)
        .args(["receive", &count.to_string()])
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .spawn()?;
    let mut told = io::BufReader::new(receiver.stdout.take().context("no output")?).lines();
    let mut arrived = || told.next().context("the receiver is gone")?.map_err(Error::from);
    arrived()?;
    tell(&receiver.id().to_string())?;
    for _ in io::stdin().lines() {
        for _ in 0..count {
            ours.send(&[7; 100])?;
        }
        tell(&arrived()?)?;
    }
    Ok(receiver.kill()?)
}

/// The receiving process of [`send`]. Its standard input is the socket.
pub(crate) fn receive(count: u32) -> anyhow::Result<()> {
    let socket = UnixDatagram::from(io::stdin().as_fd().try_clone_to_owned()?);
    tell("receiving")?;
    loop {
        for _ in 0..count {
            socket.recv(&mut [0; 200])?;
        }
        tell("arrived")?;
    }
}
