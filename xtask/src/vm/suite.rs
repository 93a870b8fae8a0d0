//! Builds the test binaries, the same ones that `cargo test --release` runs on this machine.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// Tests of the toolchain and of the sources make no sense in a machine.
const HOST_ONLY: &str = "host_";

/// Crates beside whose tests run in the machines too; they find nothing there by the
/// directory that cargo starts them in.
const GUESTS: [&str; 1] = ["custom_probe"];

/// The package that has the suite.
pub(super) const SUITE: &str = "ebpfmetrics-suite";

/// A test target, one libtest program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Harness {
    pub(super) name: String,
    pub(super) program: PathBuf,
}

#[derive(Debug)]
pub(super) struct Suite {
    pub(super) harnesses: Vec<Harness>,
    /// The other programs of the package, which tests start by absolute path.
    pub(super) programs: Vec<PathBuf>,
    /// The package's directory, where cargo starts tests.
    pub(super) directory: PathBuf,
}

pub(super) struct Build<'a> {
    pub(super) manifest: &'a Path,
    pub(super) package: &'a str,
    /// Test targets by name; all when empty.
    pub(super) targets: &'a [String],
    /// Extra arguments and environment for another architecture.
    pub(super) cross: Cross,
}

#[derive(Default)]
pub(super) struct Cross {
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
}

/// The part of cargo's messages that is used here.
#[derive(Deserialize)]
struct Artifact {
    executable: Option<PathBuf>,
    target: Target,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

pub(super) fn build(build: &Build) -> Result<Suite> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["test", "--release", "--no-run", "--message-format=json-render-diagnostics"])
        .args(["--package", build.package, "--manifest-path"])
        .arg(build.manifest)
        .args(&build.cross.arguments)
        .envs(build.cross.environment.iter().map(|(name, value)| (name, value)))
        .stderr(Stdio::inherit());
    if build.package == SUITE {
        cargo.args(GUESTS.iter().flat_map(|guest| ["--package", guest]));
    }
    if build.targets.is_empty() {
        cargo.arg("--tests");
    }
    for target in build.targets {
        cargo.args(["--test", target]);
    }
    let output = cargo.output().context("cannot run cargo test --no-run")?;
    ensure!(output.status.success(), "the tests do not compile");

    let mut suite = from_messages(&String::from_utf8(output.stdout)?)?;
    suite.directory =
        std::path::absolute(build.manifest)?.parent().map(Path::to_owned).unwrap_or_default();
    if suite.harnesses.is_empty() {
        bail!("package {} has no such test target that can run in a machine", build.package);
    }
    Ok(suite)
}

fn from_messages(messages: &str) -> Result<Suite> {
    let mut suite =
        Suite { harnesses: Vec::new(), programs: Vec::new(), directory: PathBuf::new() };
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("cargo's messages")?;
        if message["reason"] != "compiler-artifact" {
            continue;
        }
        let artifact: Artifact = serde_json::from_value(message)?;
        let Some(program) = artifact.executable else { continue };
        let is = |kind| artifact.target.kind.iter().any(|this| this == kind);
        if is("bin") {
            suite.programs.push(program);
        } else if is("test") && !artifact.target.name.starts_with(HOST_ONLY) {
            suite.harnesses.push(Harness { name: artifact.target.name, program });
        }
    }
    // Cargo reports in the order in which it finished.
    suite.harnesses.sort();
    Ok(suite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harnesses_are_told_from_programs_and_host_tests() {
        let line = |name: &str, kind: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","executable":"/t/{name}","target":{{"name":"{name}","kind":["{kind}"]}}}}"#
            )
        };
        let messages = [
            line("truth", "test"),
            line("workload", "bin"),
            line("cpu", "test"),
            line("host_layout", "test"),
            line("tests_in_a_library", "lib"),
            r#"{"reason":"build-finished","success":true}"#.into(),
        ]
        .join("\n");
        let suite = from_messages(&messages).unwrap();
        let names: Vec<_> = suite.harnesses.iter().map(|h| h.name.as_str()).collect();
        assert_eq!(names, ["cpu", "truth"]);
        assert_eq!(suite.programs, [PathBuf::from("/t/workload")]);
    }
}
