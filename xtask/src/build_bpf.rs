//! Compiles every `bpf/*.bpf.c` of a crate into its `objects/*.bpf.o`, for each crate
//! of the workspace that has both directories.
//!
//! The objects are committed, so the same source must give the same bytes on
//! every machine: the compiler is pinned, it runs with relative paths, and
//! debug information is stripped (BTF stays).

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// Debian's `clang-19`; another release may order instructions differently.
const CLANG: &str = "clang-19";
const CLANG_VERSION: &str = "19.1.7";
const STRIP: &str = "llvm-strip-19";
/// The headers, in the crate that has them.
const INCLUDE: &str = "bpf/include";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build elsewhere and fail if a committed object differs.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    check_compiler()?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let (mut objects, mut different) = (0, Vec::new());
    for crate_dir in crates(&workspace)? {
        objects += build(&workspace, &crate_dir, args.check, &mut different)?;
    }
    if args.check {
        ensure!(
            different.is_empty(),
            "committed objects differ from their source: {}; run `cargo xtask build-bpf`",
            different.join(", ")
        );
        println!("{objects} objects are what their source compiles to");
    }
    Ok(())
}

/// The crates of the workspace that have objects.
fn crates(workspace: &Path) -> Result<Vec<PathBuf>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version=1"])
        .current_dir(workspace)
        .output()
        .context("cargo metadata")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo's metadata")?;
    let manifests = packages.iter().filter_map(|package| package["manifest_path"].as_str());
    let mut crates: Vec<_> = manifests
        .filter_map(|manifest| Path::new(manifest).parent())
        .filter(|this| this.join("bpf").is_dir() && this.join("objects").is_dir())
        .map(Path::to_owned)
        .collect();
    crates.sort();
    Ok(crates)
}

/// Compiles the sources of one crate, tells which objects differ, and unless it is to
/// check alone puts them in place. Returns how many there are.
fn build(
    workspace: &Path,
    crate_dir: &Path,
    check: bool,
    different: &mut Vec<String>,
) -> Result<usize> {
    let objects = crate_dir.join("objects");
    let shown = |path: &Path| path.strip_prefix(workspace).unwrap_or(path).display().to_string();
    let built = tempfile::tempdir()?;
    let mut names = Vec::new();
    for source in sources(crate_dir)? {
        let name = object_name(&source)?;
        compile(workspace, crate_dir, &source, &built.path().join(&name))?;
        names.push(name);
    }
    for name in &names {
        let bytes = fs::read(built.path().join(name))?;
        let committed = objects.join(name);
        if fs::read(&committed).is_ok_and(|old| old == bytes) {
            continue;
        }
        different.push(shown(&committed));
        if !check {
            fs::write(&committed, &bytes)?;
            println!("built {} ({} bytes)", shown(&committed), bytes.len());
        }
    }
    for stale in stale_objects(&objects, &names)? {
        different.push(format!("{} (no source)", shown(&stale)));
        if !check {
            fs::remove_file(&stale)?;
        }
    }
    Ok(names.len())
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

fn compile(workspace: &Path, crate_dir: &Path, source: &Path, object: &Path) -> Result<()> {
    // Relative source path and working directory: both end up in the BTF line
    // information. -mcpu=v2 is what every kernel from 5.10 on verifies.
    let relative = source.strip_prefix(crate_dir)?;
    let to_workspace: PathBuf =
        crate_dir.strip_prefix(workspace)?.components().map(|_| "..").collect();
    let headers = match crate_dir.join(INCLUDE).is_dir() {
        true => PathBuf::from(INCLUDE),
        false => to_workspace.join("ebpf-probes").join(INCLUDE),
    };
    run_tool(
        Command::new(CLANG)
            .current_dir(crate_dir)
            .args(["-target", "bpfel", "-mcpu=v2", "-O2", "-g", "-std=gnu11"])
            .args(["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"])
            .arg("-fdebug-compilation-dir=.")
            .arg(format!("-I{}", headers.display()))
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
