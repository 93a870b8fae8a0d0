//! Programs that must be installed on the host, with their Debian packages.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::arch::Arch;

pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

const COMMON: [(&str, &str); 7] = [
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("busybox", "busybox-static"),
    ("mkfs.ext4", "e2fsprogs"),
    ("setpriv", "util-linux"),
    ("xz", "xz-utils"),
    ("ldd", "libc-bin"),
];

/// Fails with the list of everything that is missing. `missing` is what the caller has already
/// found to be missing: programs or files, each with its package.
pub(super) fn require(arch: Arch, mut missing: Vec<(&str, &str)>) -> Result<()> {
    let qemu = match arch {
        Arch::Amd64 => (arch.qemu(), "qemu-system-x86"),
        Arch::Arm64 => (arch.qemu(), "qemu-system-arm"),
    };
    let programs = COMMON.into_iter().chain([qemu]);
    missing.extend(programs.filter(|(program, _)| find(program).is_none()));
    if !Path::new(KEYRING).exists() {
        missing.push((KEYRING, "debian-archive-keyring"));
    }
    // The guest has no C library of its own for busybox.
    if find("busybox").is_some_and(|path| !shared_libraries(&path).is_ok_and(|l| l.is_empty())) {
        missing.push(("a static busybox", "busybox-static"));
    }
    if missing.is_empty() {
        return Ok(());
    }
    let (programs, packages): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
    bail!(
        "this machine lacks: {}\nto install it on Debian: apt-get install {}",
        programs.join(", "),
        packages.join(" ")
    )
}

/// Looks in `PATH` and in the directories that only root has in `PATH`.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// A command by a program that [`require`] has found.
pub(super) fn command(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| program.into()))
}

/// Runs a command and returns its output. The error contains its standard error.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{:?}", command.get_program()))?;
    if !output.status.success() {
        let arguments: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        bail!(
            "{} {} failed ({})\n{}",
            command.get_program().to_string_lossy(),
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).context("output is not text")
}

/// The libraries that the host's loader would map, the loader included.
pub(super) fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    // ldd fails on a static program, so its status says nothing.
    let output = command("ldd").arg(program).output().context("ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("not found") {
        bail!("{} needs libraries that this machine lacks:\n{text}", program.display());
    }
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
