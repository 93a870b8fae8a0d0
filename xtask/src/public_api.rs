//! Writes the public API of the published crates as text, so that reviews show every change.
//!
//! It reads rustdoc's JSON, which needs a nightly compiler. The format changes occasionally: the
//! `public-api` crate in `Cargo.toml` must match the installed nightly.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

const CRATES: [&str; 2] = ["ebpf-probes", "ebpfmetrics"];
const FILE: &str = "public-api.txt";
const TOOLCHAIN: &str = "nightly";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing; print the differences and fail if a file is not up to date
    #[arg(long)]
    check: bool,

    /// Succeed with a warning if there is no nightly compiler
    #[arg(long)]
    allow_missing_nightly: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !has_nightly() {
        let missing = format!(
            "cannot read the public API: no {TOOLCHAIN} compiler; run `rustup toolchain install \
             {TOOLCHAIN} --profile minimal`"
        );
        ensure!(args.allow_missing_nightly, missing);
        eprintln!("warning: {missing}");
        return Ok(());
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let mut different = Vec::new();
    for name in CRATES {
        let new = public_api(&workspace, name)?;
        let file = workspace.join(name).join(FILE);
        let old = fs::read_to_string(&file).unwrap_or_default();
        let differences = differences(&old, &new);
        if differences.is_empty() {
            continue;
        }
        print!("{name}/{FILE}:\n{differences}");
        different.push(name);
        if !args.check {
            fs::write(&file, new)?;
        }
    }
    if args.check && !different.is_empty() {
        bail!(
            "the public API of {} has changed; if this is intended, run `cargo xtask public-api`",
            different.join(" and ")
        );
    }
    Ok(())
}

fn has_nightly() -> bool {
    let version = rustup("rustc").arg("--version").output();
    version.is_ok_and(|output| output.status.success())
}

/// A program of the nightly toolchain. rustup starts it, whichever toolchain runs this.
fn rustup(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", TOOLCHAIN, program]);
    for variable in ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTDOCFLAGS", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(variable);
    }
    command
}

/// The items of a crate with all its features, one per line, without those that every
/// type has: blanket and auto trait implementations and derives.
fn public_api(workspace: &Path, name: &str) -> Result<String> {
    let target = target_directory(workspace).join("public-api");
    let status = rustup("cargo")
        .args(["rustdoc", "--quiet", "--locked", "--lib", "--all-features", "--package", name])
        .args(["--", "-Z", "unstable-options", "--output-format", "json", "--cap-lints", "allow"])
        .env("CARGO_TARGET_DIR", &target)
        .current_dir(workspace)
        .status()
        .context("cannot run rustup")?;
    ensure!(status.success(), "cargo rustdoc --package {name} failed: {status}");
    let json = target.join("doc").join(name.replace('-', "_")).with_extension("json");
    let api = public_api::Builder::from_rustdoc_json(&json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()
        .with_context(|| {
            format!(
                "cannot read {}: the crate `public-api` may not match this nightly",
                json.display()
            )
        })?;
    Ok(api.items().map(|item| format!("{item}\n")).collect())
}

fn target_directory(workspace: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from)
}

/// The lines that only one text has, each with its sign.
fn differences(old: &str, new: &str) -> String {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (old, new) = (lines(old), lines(new));
    let only = |sign: char, these: &[String], those: &[String]| {
        let mut rest = those.to_vec();
        let mut text = String::new();
        for line in these {
            match rest.iter().position(|other| other == line) {
                Some(index) => drop(rest.swap_remove(index)),
                None => text.push_str(&format!("{sign}{line}\n")),
            }
        }
        text
    };
    only('-', &old, &new) + &only('+', &new, &old)
}

#[cfg(test)]
mod tests {
    use super::differences;

    #[test]
    fn differences_are_the_lines_of_one_side() {
        assert_eq!(differences("a\nb\n", "a\nb\n"), "");
        assert_eq!(differences("a\nb\nb\n", "c\nb\na\n"), "-b\n+c\n");
    }
}
