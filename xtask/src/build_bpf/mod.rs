//! Compiles the BPF sources of each crate of the workspace that has the directories
//! `bpf/` and `objects/`.
//!
//! A source is `bpf/NAME/NAME.bpf.c`, with its headers beside it, or `bpf/NAME.bpf.c`. Its
//! object is `objects/NAME.bpf.o`. Objects are committed, so the same source must compile
//! to the same bytes on every machine: the compiler is pinned, paths are relative, and
//! debug information is stripped (BTF stays).
//!
//! The BTF also gives the Rust code of the types that both sides use (`records`).

mod emit;
mod records;
mod sources;
mod types;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use walkdir::WalkDir;

/// Debian's `clang-19`; another release may order instructions differently.
const CLANG: &str = "clang-19";
const CLANG_VERSION: &str = "19.1.7";
const STRIP: &str = "llvm-strip-19";
/// The crate with the headers that all sources share, in [`INCLUDE`].
const HEADERS_CRATE: &str = "ebpf-probes";
const INCLUDE: &str = "bpf/include";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail if a committed file differs from the result
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    check_compiler()?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let mut different = Vec::new();
    let mut built = Vec::new();
    for directory in crates(&workspace)? {
        let objects = build(&workspace, &directory, args.check, &mut different)?;
        built.push(Built { directory, objects });
    }
    let files = records::generate(&workspace, &built)?;
    let generated = records::write(&workspace, &files, args.check, &mut different)?;
    if args.check {
        ensure!(
            different.is_empty(),
            "these files do not match their sources: {}; run `cargo xtask build-bpf`",
            different.join(", ")
        );
        let objects: usize = built.iter().map(|this| this.objects.len()).sum();
        println!("{objects} objects and {generated} generated files match their sources");
    }
    Ok(())
}

/// A crate with its objects, freshly compiled.
struct Built {
    directory: PathBuf,
    /// Names without `.bpf.o`, and contents.
    objects: Vec<(String, Vec<u8>)>,
}

/// The crates of the workspace that have objects.
fn crates(workspace: &Path) -> Result<Vec<PathBuf>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version=1"])
        .current_dir(workspace)
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages =
        metadata["packages"].as_array().context("unexpected output of cargo metadata")?;
    let manifests = packages.iter().filter_map(|package| package["manifest_path"].as_str());
    let mut crates: Vec<_> = manifests
        .filter_map(|manifest| Path::new(manifest).parent())
        .filter(|this| this.join("bpf").is_dir() && this.join("objects").is_dir())
        .map(Path::to_owned)
        .collect();
    crates.sort();
    Ok(crates)
}

/// Compiles the sources of one crate and adds the objects that changed to `different`.
/// Replaces them unless `check` is set. Returns all objects.
fn build(
    workspace: &Path,
    crate_dir: &Path,
    check: bool,
    different: &mut Vec<String>,
) -> Result<Vec<(String, Vec<u8>)>> {
    let objects = crate_dir.join("objects");
    let shown = |path: &Path| path.strip_prefix(workspace).unwrap_or(path).display().to_string();
    let scratch = tempfile::tempdir()?;
    let (mut names, mut built) = (Vec::new(), Vec::new());
    for source in sources(crate_dir)? {
        let name = object_name(&source)?;
        let object = scratch.path().join(&name);
        compile(workspace, crate_dir, &source, &object)?;
        let bytes = fs::read(object)?;
        let committed = objects.join(&name);
        if !fs::read(&committed).is_ok_and(|old| old == bytes) {
            different.push(shown(&committed));
            if !check {
                fs::write(&committed, &bytes)?;
                println!("built {} ({} bytes)", shown(&committed), bytes.len());
            }
        }
        built.push((name.trim_end_matches(".bpf.o").to_owned(), bytes));
        names.push(name);
    }
    for stale in stale_objects(&objects, &names)? {
        different.push(format!("{} (no source)", shown(&stale)));
        if !check {
            fs::remove_file(&stale)?;
        }
    }
    Ok(built)
}

fn check_compiler() -> Result<()> {
    let version = Command::new(CLANG)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {CLANG}: install clang-19, llvm-19 and libbpf-dev"))?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    ensure!(
        version.contains(CLANG_VERSION),
        "the objects need clang {CLANG_VERSION}, found: {}",
        version.lines().next().unwrap_or_default()
    );
    Ok(())
}

/// The sources of a crate, at the top of `bpf/` or in a directory of the same name.
fn sources(crate_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    for entry in WalkDir::new(crate_dir.join("bpf")).min_depth(1).max_depth(2) {
        let path = entry?.into_path();
        if path.to_string_lossy().ends_with(".bpf.c") {
            sources.push(path);
        }
    }
    sources.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    for pair in sources.windows(2) {
        ensure!(
            pair[0].file_name() != pair[1].file_name(),
            "{} and {} would be compiled to the same object",
            pair[0].display(),
            pair[1].display()
        );
    }
    for source in &sources {
        let directory =
            source.parent().and_then(Path::file_name).context("a source has a place")?;
        let expected = format!("{}.bpf.c", directory.to_string_lossy());
        ensure!(
            source.parent() == Some(&crate_dir.join("bpf")) || source.ends_with(&expected),
            "{} must be named {expected}, after its directory",
            source.display()
        );
    }
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
    let shared = match crate_dir.join(INCLUDE).is_dir() {
        true => PathBuf::new(),
        false => to_workspace.join(HEADERS_CRATE),
    };
    let directories = [shared.join(INCLUDE), shared.join("bpf")];
    run_tool(
        Command::new(CLANG)
            .current_dir(crate_dir)
            .args(["-target", "bpfel", "-mcpu=v2", "-O2", "-g", "-std=gnu11"])
            .args(["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"])
            .arg("-fdebug-compilation-dir=.")
            .args(directories.map(|directory| format!("-I{}", directory.display())))
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
