//! The machine's disks. One more disk is one more line of `DISKS`.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::tools;

struct Disk {
    name: &'static str,
    mebibytes: u64,
    mount: &'static str,
}

const DISKS: [Disk; 1] = [Disk { name: "vol", mebibytes: 256, mount: "/mnt/vol" }];

/// Makes every disk as a sparse file with an ext4 on it.
pub(super) fn make(directory: &Path) -> Result<Vec<PathBuf>> {
    let make = |disk: &Disk| {
        let path = directory.join(format!("{}.img", disk.name));
        File::create(&path)?.set_len(disk.mebibytes << 20)?;
        // Tables left for later would be written by the kernel during the tests.
        let complete = "lazy_itable_init=0,lazy_journal_init=0";
        tools::output(tools::command("mkfs.ext4").args(["-q", "-F", "-E", complete]).arg(&path))?;
        Ok(path)
    };
    DISKS.iter().map(make).collect()
}

/// Lines of `DEVICE DIRECTORY` for the init script.
pub(super) fn table() -> String {
    let lines = DISKS.iter().enumerate();
    lines.map(|(number, disk)| format!("/dev/nvme{number}n1 {}\n", disk.mount)).collect()
}

pub(super) fn mounts() -> impl Iterator<Item = &'static str> {
    DISKS.iter().map(|disk| disk.mount)
}
