//! Allows one run at a time: two would write the same logs and slow each other down beyond
//! the time limits.

use std::{
    fs::{self, File, TryLockError},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, bail};

/// Waits for the runs before this one; the turn lasts as long as the value.
pub(super) fn take(directory: &Path, stop: &AtomicBool) -> Result<File> {
    fs::create_dir_all(directory)?;
    let lock = File::create(directory.join("turn.lock"))?;
    let mut told = false;
    while !stop.load(Ordering::Relaxed) {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if told => {}
            Err(TryLockError::WouldBlock) => println!("waiting for another run to finish"),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        told = true;
        thread::sleep(Duration::from_millis(200));
    }
    bail!("interrupted")
}
