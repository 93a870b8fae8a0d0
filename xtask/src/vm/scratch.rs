//! Files that live as long as one run.

use std::{
    fs::{self, File},
    path::Path,
};

use anyhow::Result;
use tempfile::TempDir;

/// A directory that goes away with this value, or, should this process be
/// killed, with the next run.
pub(super) struct Scratch {
    directory: TempDir,
    /// Shared by all runs; whoever gets it alone knows that the rest is left over.
    _lock: File,
}

impl Scratch {
    pub(super) fn new(parent: &Path) -> Result<Scratch> {
        fs::create_dir_all(parent)?;
        let lock = File::create(parent.with_extension("lock"))?;
        if lock.try_lock().is_ok() {
            fs::remove_dir_all(parent)?;
            fs::create_dir(parent)?;
            lock.unlock()?;
        }
        lock.lock_shared()?;
        fs::create_dir_all(parent)?;
        Ok(Scratch { directory: tempfile::tempdir_in(parent)?, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

#[cfg(test)]
mod tests {
    use super::Scratch;

    #[test]
    fn leftovers_go_and_a_running_neighbour_stays() {
        let parent = tempfile::tempdir().unwrap();
        let parent = parent.path().join("tmp");
        std::fs::create_dir_all(parent.join("left over")).unwrap();
        let first = Scratch::new(&parent).unwrap();
        assert!(!parent.join("left over").exists());
        let second = Scratch::new(&parent).unwrap();
        assert!(first.path().exists());
        let path = second.path().to_owned();
        drop(second);
        assert!(!path.exists());
    }
}
