//! Compiles every `ebpf-probes/bpf/*.bpf.c` into `ebpf-probes/objects/*.bpf.o`.
//!
//! The objects are committed, so the same source must give the same bytes on
//! every machine: the compiler is pinned, it runs with relative paths, and
//! debug information is stripped (BTF stays).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// Debian's `clang-19`; another release may order instructions differently.
const CLANG: &str = "clang-19";
const CLANG_VERSION: &str = "19.1.7";
const STRIP: &str = "llvm-strip-19";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build elsewhere and fail if a committed object differs.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    check_compiler()?;
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ebpf-probes").canonicalize()?;
    let objects = crate_dir.join("objects");
    let built = tempfile::tempdir()?;

    let mut names = Vec::new();
    for source in sources(&crate_dir)? {
        let name = object_name(&source)?;
        compile(&crate_dir, &source, &built.path().join(&name))?;
        names.push(name);
    }

    let mut different = Vec::new();
    for name in &names {
        let bytes = fs::read(built.path().join(name))?;
        let committed = objects.join(name);
        if fs::read(&committed).is_ok_and(|old| old == bytes) {
            continue;
        }
        different.push(name.clone());
        if !args.check {
            fs::write(&committed, &bytes)?;
            println!("built ebpf-probes/objects/{name} ({} bytes)", bytes.len());
        }
    }
    for stale in stale_objects(&objects, &names)? {
        different.push(format!("{} (no source)", stale.display()));
        if !args.check {
            fs::remove_file(&stale)?;
        }
    }
    if args.check {
        ensure!(
            different.is_empty(),
            "committed objects differ from their source: {}; run `cargo xtask build-bpf`",
            different.join(", ")
        );
        println!("{} objects are what their source compiles to", names.len());
    }
    Ok(())
}

fn check_compiler() -> Result<()> {
    let version = Command::new(CLANG)
        .arg("--version")
        .output()
        .with_context(|| format!("{CLANG} not found: install clang-19, llvm-19 and libbpf-dev"))?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    ensure!(
        version.contains(CLANG_VERSION),
        "the objects are pinned to clang {CLANG_VERSION}, found: {}",
        version.lines().next().unwrap_or_default()
    );
    Ok(())
}

fn sources(crate_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut sources = fs::read_dir(crate_dir.join("bpf"))?
        .map(|entry| Ok(entry?.path()))
        .filter(|path| path.as_ref().is_ok_and(|p| p.to_string_lossy().ends_with(".bpf.c")))
        .collect::<Result<Vec<_>>>()?;
    sources.sort();
    Ok(sources)
}

fn object_name(source: &Path) -> Result<String> {
    let stem = source.file_stem().context("a source has a name")?;
    Ok(format!("{}.o", stem.to_string_lossy()))
}

fn stale_objects(objects: &Path, names: &[String]) -> Result<Vec<PathBuf>> {
    let mut stale = Vec::new();
    for entry in fs::read_dir(objects)? {
        let path = entry?.path();
        let known = path.file_name().is_some_and(|n| names.iter().any(|k| n == k.as_str()));
        if !known {
            stale.push(path);
        }
    }
    Ok(stale)
}

fn compile(crate_dir: &Path, source: &Path, object: &Path) -> Result<()> {
    // Relative source path and working directory: both end up in the BTF line
    // information. -mcpu=v2 is what every kernel from 5.10 on verifies.
    let relative = source.strip_prefix(crate_dir)?;
    run_tool(
        Command::new(CLANG)
            .current_dir(crate_dir)
            .args(["-target", "bpfel", "-mcpu=v2", "-O2", "-g", "-std=gnu11"])
            .args(["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"])
            .args(["-fdebug-compilation-dir=.", "-Ibpf/include"])
            .arg("-c")
            .arg(relative)
            .arg("-o")
            .arg(object),
    )?;
    run_tool(Command::new(STRIP).arg("-g").arg(object))
}

fn run_tool(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}
