//! The tests for arm64, built on amd64.
//!
//! Rust's own cross-compilation libraries come from a host that not every machine can reach. So
//! this uses Debian's compiler and fetches Debian's arm64 library of the same version. The programs
//! are linked statically, so the guest needs no libraries.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    apt::{Apt, Candidate},
    arch::Arch,
    mirror::{self, Mirror},
    suite::Cross,
    tools,
};

const RUSTC: &str = "/usr/bin/rustc";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const TARGET: &str = "aarch64-unknown-linux-gnu";

/// What the other architecture takes from outside this machine.
pub(super) struct Toolchain {
    pub(super) busybox: PathBuf,
    pub(super) cross: Cross,
}

/// Fetches what is missing in `cache` and returns how cargo has to use it.
pub(super) fn prepare(cache: &Path, mirror: Option<&str>) -> Result<Toolchain> {
    let version = rustc_version().context("rustc-web is not installed")?;
    let directory = cache.join(&version);
    if !directory.exists() {
        fetch(cache, &version, mirror)?;
    }
    let sysroot = directory.join("usr");
    let flags = format!("-C target-feature=+crt-static --sysroot={}", sysroot.display());
    let target = cache.join("target");
    let cross = Cross {
        arguments: [["--target", TARGET], ["--target-dir", &target.to_string_lossy()]]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect(),
        environment: [
            ("RUSTC", RUSTC),
            ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER),
            ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", &flags),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into(),
    };
    Ok(Toolchain { busybox: directory.join("bin/busybox"), cross })
}

/// Programs and packages that only this architecture needs.
pub(super) fn missing() -> Vec<(&'static str, &'static str)> {
    let mut missing = Vec::new();
    if rustc_version().is_none() {
        missing.push((RUSTC, "rustc-web"));
    }
    if tools::find(LINKER).is_none() {
        missing.push((LINKER, "gcc-aarch64-linux-gnu"));
    }
    let library = "/usr/aarch64-linux-gnu/lib/libc.a";
    if !Path::new(library).exists() {
        missing.push((library, "libc6-dev-arm64-cross"));
    }
    missing
}

/// The version of Debian's compiler, if it is installed.
fn rustc_version() -> Option<String> {
    let mut query = tools::command("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status} ${Version}", "rustc-web"]);
    tools::output(&mut query).ok()?.strip_prefix("installed ").map(str::to_owned)
}

fn fetch(cache: &Path, version: &str, mirror: Option<&str>) -> Result<()> {
    println!("fetching busybox and Rust's library for arm64");
    fs::create_dir_all(cache)?;
    let codename = mirror::codename()?;
    let suites = [codename.clone(), format!("{codename}-security")];
    let suites = [suites[0].as_str(), suites[1].as_str()];
    let apt = Apt::new(&cache.join("apt"), Arch::Arm64, &suites, &Mirror::choose(mirror)?)?;

    let scratch = tempfile::tempdir_in(cache)?;
    let tree = scratch.path().join("tree");
    let busybox = apt
        .candidates(suites[0], "busybox-static", "busybox-static")?
        .into_iter()
        .next()
        .with_context(|| format!("{codename} has no busybox-static"))?;
    let library = Candidate { name: "libstd-rust-web-dev".into(), version: version.into() };
    for package in [&busybox, &library] {
        let into = tempfile::tempdir_in(scratch.path())?;
        let file = apt.download(package, into.path())?;
        tools::output(tools::command("dpkg-deb").arg("-x").arg(file).arg(&tree))?;
    }
    Ok(fs::rename(tree, cache.join(version))?)
}
