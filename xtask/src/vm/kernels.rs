//! Fetches kernels into the cache: the pinned packages, checked against their
//! hashes, or, when the mirror no longer has them, the newest that replaced them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use super::{
    apt::{Apt, Candidate},
    catalog::{Kernel, Pin},
    mirror::Mirror,
    tools,
    version::Version,
};

const STAMP: &str = "packages.json";

/// A kernel in the cache.
#[derive(Debug)]
pub(super) struct Cached {
    pub(super) directory: PathBuf,
    /// The note to print if these are not the pinned packages.
    pub(super) substitute: Option<String>,
}

impl Cached {
    pub(super) fn image(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    pub(super) fn modules(&self) -> PathBuf {
        self.directory.join("modules")
    }
}

/// What the cache holds, and the pins for which it was fetched.
#[derive(Serialize, Deserialize)]
struct Stamp {
    pinned: Vec<String>,
    fetched: Vec<String>,
    /// Lines for the catalog, if the pinned packages were not available.
    replacement: Vec<String>,
}

pub(super) struct Store<'a> {
    cache: &'a Path,
    mirror: Option<&'a str>,
}

impl<'a> Store<'a> {
    pub(super) fn new(cache: &'a Path, mirror: Option<&'a str>) -> Store<'a> {
        Store { cache, mirror }
    }

    /// Fetches the kernels that the cache lacks.
    pub(super) fn ensure(&self, kernels: &[Kernel]) -> Result<Vec<Cached>> {
        fs::create_dir_all(self.cache)?;
        let lock = File::create(self.cache.join("lock"))?;
        lock.lock().context("cannot lock the kernel cache")?;

        let missing: Vec<_> = kernels.iter().filter(|k| self.stamp(k).is_none()).collect();
        if let Some(first) = missing.first() {
            let suites: Vec<_> =
                missing.iter().flat_map(|k| &k.pins).map(|pin| pin.suite.as_str()).collect();
            let mirror = Mirror::choose(self.mirror)?;
            let root = self.cache.join("apt").join(first.arch.name());
            let apt = Apt::new(&root, first.arch, &suites, &mirror)?;
            for kernel in missing {
                println!("fetching kernel {} ({})", kernel.series, kernel.arch.name());
                self.fetch(kernel, &apt)
                    .with_context(|| format!("cannot fetch kernel {}", kernel.series))?;
            }
        }
        kernels.iter().map(|kernel| self.cached(kernel)).collect()
    }

    fn directory(&self, kernel: &Kernel) -> PathBuf {
        self.cache.join(kernel.arch.name()).join(kernel.series.to_string())
    }

    /// The stamp, if the cache was filled for exactly these pins.
    fn stamp(&self, kernel: &Kernel) -> Option<Stamp> {
        let text = fs::read_to_string(self.directory(kernel).join(STAMP)).ok()?;
        let stamp: Stamp = serde_json::from_str(&text).ok()?;
        (stamp.pinned == pinned(kernel)).then_some(stamp)
    }

    fn cached(&self, kernel: &Kernel) -> Result<Cached> {
        let stamp = self.stamp(kernel).context("the kernel cache changed during this run")?;
        let substitute = (!stamp.replacement.is_empty()).then(|| {
            let why = match kernel.pins.iter().all(Pin::is_complete) {
                true => "the mirror no longer has the pinned packages",
                false => "its lines in xtask/kernels.toml have no version",
            };
            format!(
                "NOT A PINNED KERNEL: {why} of {}; this run used {}. To pin it:\n{}",
                kernel.series,
                stamp.fetched.join(" and "),
                stamp.replacement.join("\n")
            )
        });
        Ok(Cached { directory: self.directory(kernel), substitute })
    }

    fn fetch(&self, kernel: &Kernel, apt: &Apt) -> Result<()> {
        // Everything happens aside, then one rename: a broken fetch leaves nothing.
        let scratch = tempfile::tempdir_in(self.cache)?;
        let tree = scratch.path().join("tree");
        let taken = match pinned_set(kernel, apt, scratch.path())? {
            Some(files) => files,
            None => newest_set(kernel, apt, scratch.path())?,
        };
        let is_pinned = |(taken, pin): (&Taken, &Pin)| taken.pin.sha256 == pin.sha256;
        let replacement = match taken.iter().zip(&kernel.pins).all(is_pinned) {
            true => Vec::new(),
            false => taken.iter().map(|taken| taken.pin.line()).collect(),
        };
        for package in &taken {
            tools::output(tools::command("dpkg-deb").arg("-x").arg(&package.file).arg(&tree))?;
        }

        let ready = scratch.path().join("ready");
        fs::create_dir(&ready)?;
        arrange(&tree, &ready)?;
        let stamp = Stamp {
            pinned: pinned(kernel),
            fetched: taken.iter().map(|t| format!("{} {}", t.pin.name, t.pin.version)).collect(),
            replacement,
        };
        fs::write(ready.join(STAMP), serde_json::to_string_pretty(&stamp)?)?;

        let directory = self.directory(kernel);
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(directory.parent().context("the cache directory has no parent")?)?;
        fs::rename(&ready, &directory)?;
        Ok(())
    }
}

fn pinned(kernel: &Kernel) -> Vec<String> {
    kernel.pins.iter().map(|pin| format!("{} {} {}", pin.name, pin.version, pin.sha256)).collect()
}

/// A downloaded package, described as it would be pinned.
struct Taken {
    pin: Pin,
    file: PathBuf,
}

/// The packages as pinned; `None` when one of them is not to be had.
fn pinned_set(kernel: &Kernel, apt: &Apt, scratch: &Path) -> Result<Option<Vec<Taken>>> {
    let mut taken = Vec::new();
    for pin in &kernel.pins {
        let listed = apt.candidates(&pin.suite, &pin.name, &pin.name)?;
        if !pin.is_complete() || !listed.iter().any(|listed| listed.version == pin.version) {
            return Ok(None);
        }
        let wanted = Candidate { name: pin.name.clone(), version: pin.version.clone() };
        // An index may still list what the mirror has deleted.
        let package = match download(pin, &wanted, apt, scratch) {
            Ok(package) => package,
            Err(error) => {
                println!("note: {error:#}");
                return Ok(None);
            }
        };
        ensure!(
            package.pin.sha256 == pin.sha256,
            "{} {} has the sha256 {}, but {} is pinned",
            pin.name,
            pin.version,
            package.pin.sha256,
            pin.sha256
        );
        taken.push(package);
    }
    Ok(Some(taken))
}

/// The newest of the series, or where the suite has moved on, of the same major.
/// An index may list files that are gone: then the next is tried.
fn newest_set(kernel: &Kernel, apt: &Apt, scratch: &Path) -> Result<Vec<Taken>> {
    let first = kernel.pins.first().context("a kernel without packages")?;
    let name = Name::parse(&first.name)?;
    let prefix = format!("{}-{}.", name.kind, kernel.series.major);
    let mut candidates = apt.candidates(&first.suite, &prefix, &name.suffix())?;
    candidates.retain(|candidate| series_of(candidate).is_some_and(|s| s >= kernel.series));
    candidates.sort_by_key(|candidate| series_of(candidate) != Some(kernel.series));

    let mut failures = Vec::new();
    for candidate in &candidates {
        match same_build(kernel, candidate, apt, scratch) {
            Ok(taken) => return Ok(taken),
            Err(error) => failures.push(format!("{}: {error:#}", candidate.name)),
        }
    }
    bail!("{} has no kernel for series {}\n{}", first.suite, kernel.series, failures.join("\n"))
}

/// Every package of the kernel in the build that `candidate` belongs to.
fn same_build(
    kernel: &Kernel,
    candidate: &Candidate,
    apt: &Apt,
    scratch: &Path,
) -> Result<Vec<Taken>> {
    let build = Name::parse(&candidate.name)?.build;
    let mut taken = Vec::new();
    for pin in &kernel.pins {
        let name = Name { build, ..Name::parse(&pin.name)? }.to_string();
        let newest = apt
            .candidates(&pin.suite, &name, &name)?
            .into_iter()
            .next()
            .with_context(|| format!("{} has no package {name}", pin.suite))?;
        taken.push(download(pin, &newest, apt, scratch)?);
    }
    Ok(taken)
}

fn download(pin: &Pin, candidate: &Candidate, apt: &Apt, scratch: &Path) -> Result<Taken> {
    let into = tempfile::tempdir_in(scratch)?.keep();
    let file = apt.download(candidate, &into)?;
    let pin = Pin {
        series: series_of(candidate).unwrap_or(pin.series),
        name: candidate.name.clone(),
        version: candidate.version.clone(),
        sha256: sha256(&file)?,
        ..pin.clone()
    };
    Ok(Taken { pin, file })
}

fn sha256(file: &Path) -> Result<String> {
    let hash = Sha256::digest(fs::read(file)?);
    Ok(hash.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn series_of(candidate: &Candidate) -> Option<Version> {
    Name::parse(&candidate.name).ok()?.build.parse().ok()
}

/// `linux-image-6.1.0-56-cloud-amd64` in its three parts.
struct Name<'a> {
    kind: &'a str,
    build: &'a str,
    flavour: &'a str,
}

impl<'a> Name<'a> {
    fn parse(name: &'a str) -> Result<Name<'a>> {
        let parts = || {
            let digit = name.find(|c: char| c.is_ascii_digit())?;
            let kind = name[..digit].strip_suffix('-')?;
            let flavour = name[digit..].find("-cloud-")? + digit;
            Some(Name { kind, build: &name[digit..flavour], flavour: &name[flavour + 1..] })
        };
        parts().with_context(|| format!("{name} is not the name of a cloud kernel package"))
    }

    fn suffix(&self) -> String {
        format!("-{}", self.flavour)
    }
}

impl std::fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}-{}", self.kind, self.build, self.flavour)
    }
}

/// Debian has moved these files between releases, so they are looked for.
fn arrange(tree: &Path, ready: &Path) -> Result<()> {
    for entry in WalkDir::new(tree) {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if entry.file_type().is_file() && name.starts_with("vmlinuz") {
            fs::rename(entry.path(), ready.join("vmlinuz"))?;
        } else if entry.file_type().is_file() && (name.starts_with("config-") || name == "config") {
            fs::rename(entry.path(), ready.join("config"))?;
        }
    }
    ensure!(ready.join("vmlinuz").exists(), "the packages contain no kernel image");
    for parent in ["lib/modules", "usr/lib/modules"] {
        if let Ok(mut releases) = fs::read_dir(tree.join(parent)) {
            let release = releases.next().context("an empty modules directory")??;
            let modules = ready.join("modules");
            fs::create_dir(&modules)?;
            fs::rename(release.path(), modules.join(release.file_name()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_apart_and_together() {
        for name in [
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-modules-7.3.4+deb13-cloud-arm64",
        ] {
            assert_eq!(Name::parse(name).unwrap().to_string(), name);
        }
        let name = Name::parse("linux-image-6.1.0-56-cloud-amd64").unwrap();
        assert_eq!((name.kind, name.build), ("linux-image", "6.1.0-56"));
        assert_eq!(name.suffix(), "-cloud-amd64");
        assert!(Name::parse("linux-image-cloud-amd64").is_err());
    }
}
