//! A private apt with its own sources, lists, state and cache. It does not read or change the
//! machine's apt. Signatures are checked.

use std::{
    cmp::Ordering,
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{arch::Arch, mirror::Mirror, tools};

pub(super) struct Apt {
    config: PathBuf,
}

/// One version of one package that an index lists.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) version: String,
}

impl Apt {
    /// Writes the configuration below `root` and reads the suites' indices.
    pub(super) fn new(root: &Path, arch: Arch, suites: &[&str], mirror: &Mirror) -> Result<Apt> {
        for directory in ["lists/partial", "cache/archives/partial", "state", "etc"] {
            fs::create_dir_all(root.join(directory))?;
        }
        fs::write(root.join("state/status"), "")?;
        let config = root.join("apt.conf");
        fs::write(&config, configuration(root, arch)?)?;
        let apt = Apt { config };

        let sources = root.join("etc/sources.list");
        let suites: BTreeSet<_> = suites.iter().copied().collect();
        fs::write(&sources, source_lines(&suites, &BTreeSet::new(), arch, mirror))?;
        let Err(error) = apt.update() else { return Ok(apt) };

        // Some mirrors are snapshots, older than the date up to which Debian
        // vouches for an index. Only those lines lose that check: packages are
        // still signed for, and a pinned one is compared with its own hash.
        let text = format!("{error:#}");
        let stale: BTreeSet<_> =
            suites.iter().copied().filter(|suite| is_expired(&text, suite)).collect();
        if stale.is_empty() {
            return Err(error);
        }
        for suite in &stale {
            println!("note: the mirror's index of {suite} has expired; using it anyway");
        }
        fs::write(&sources, source_lines(&suites, &stale, arch, mirror))?;
        apt.update()?;
        Ok(apt)
    }

    fn update(&self) -> Result<()> {
        // By default apt takes an index that it could not read for a warning.
        tools::output(self.command("apt-get").args(["-qq", "--error-on=any", "update"])).map(drop)
    }

    /// The versions in `suite` of packages whose name starts with `prefix` and
    /// ends with `suffix`, newest first.
    pub(super) fn candidates(
        &self,
        suite: &str,
        prefix: &str,
        suffix: &str,
    ) -> Result<Vec<Candidate>> {
        let names = tools::output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        let names: Vec<_> = names.lines().filter(|name| name.ends_with(suffix)).collect();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let table = tools::output(self.command("apt-cache").arg("madison").args(names))?;
        let mut found: Vec<_> = table.lines().filter_map(|line| row(line, suite)).collect();
        sort_newest_first(&mut found);
        Ok(found)
    }

    /// Downloads one package into an empty directory.
    pub(super) fn download(&self, candidate: &Candidate, into: &Path) -> Result<PathBuf> {
        let request = format!("{}={}", candidate.name, candidate.version);
        tools::output(
            self.command("apt-get").args(["-qq", "download", &request]).current_dir(into),
        )?;
        let mut files = fs::read_dir(into)?.map(|entry| entry.map(|entry| entry.path()));
        let file =
            files.next().with_context(|| format!("apt downloaded no file for {request}"))??;
        ensure!(files.next().is_none(), "apt downloaded several files for {request}");
        Ok(file)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = tools::command(program);
        command.env("APT_CONFIG", &self.config).env("LC_ALL", "C");
        command
    }
}

fn configuration(root: &Path, arch: Arch) -> Result<String> {
    let root = root.display();
    let arch = arch.name();
    // How to reach the network is the machine's business, so that part is kept.
    let network = tools::output(tools::command("apt-config").args([
        "dump",
        "Acquire::http",
        "Acquire::https",
    ]))?;
    Ok(format!(
        r#"Dir::Etc "{root}/etc";
Dir::Etc::sourcelist "{root}/etc/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::State "{root}/state";
Dir::State::Lists "{root}/lists";
Dir::State::status "{root}/state/status";
Dir::Cache "{root}/cache";
APT::Architecture "{arch}";
APT::Architectures {{ "{arch}"; }};
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
{network}"#
    ))
}

fn source_lines(
    suites: &BTreeSet<&str>,
    stale: &BTreeSet<&str>,
    arch: Arch,
    mirror: &Mirror,
) -> String {
    suites
        .iter()
        .map(|suite| {
            let date = if stale.contains(suite) { "check-valid-until=no " } else { "" };
            let arch = arch.name();
            let base = mirror.base(suite);
            format!("deb [arch={arch} {date}signed-by={}] {base} {suite} main\n", tools::KEYRING)
        })
        .collect()
}

fn is_expired(error: &str, suite: &str) -> bool {
    let index = format!("/dists/{suite}/");
    error.lines().any(|line| line.contains(&index) && line.contains("is expired"))
}

/// One line of `apt-cache madison`: ` name | version | URI suite/main amd64 Packages`.
fn row(line: &str, suite: &str) -> Option<Candidate> {
    let mut columns = line.split('|').map(str::trim);
    let (name, version, source) = (columns.next()?, columns.next()?, columns.next()?);
    source
        .contains(&format!(" {suite}/main "))
        .then(|| Candidate { name: name.into(), version: version.into() })
}

/// Debian's order of versions is dpkg's to decide.
fn sort_newest_first(candidates: &mut [Candidate]) {
    candidates.sort_by(|a, b| match (is_newer(a, b), is_newer(b, a)) {
        (true, _) => Ordering::Less,
        (_, true) => Ordering::Greater,
        _ => Ordering::Equal,
    });
}

fn is_newer(a: &Candidate, b: &Candidate) -> bool {
    let mut dpkg = tools::command("dpkg");
    dpkg.args(["--compare-versions", &a.version, "gt", &b.version]);
    dpkg.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_told_apart_by_suite() {
        let error = "E: Release file for http://mirror.example/debian/dists/sid/InRelease \
                     is expired (invalid since 16d).";
        assert!(is_expired(error, "sid"));
        assert!(!is_expired(error, "bookworm"));
    }

    #[test]
    fn madison_row_of_another_suite_is_no_candidate() {
        let line =
            " linux-x | 6.1.192-2 | http://mirror.example/debian bookworm/main amd64 Packages";
        assert_eq!(row(line, "bookworm").unwrap().version, "6.1.192-2");
        assert!(row(line, "bookworm-security").is_none());
    }

    #[test]
    fn newest_first_by_dpkg() {
        let versions = ["6.9-1", "6.12-1~deb12u1", "6.12-1", "6.10-1"];
        let mut candidates =
            versions.map(|v| Candidate { name: "linux-x".into(), version: v.into() });
        sort_newest_first(&mut candidates);
        let sorted = candidates.map(|c| c.version);
        assert_eq!(sorted, ["6.12-1", "6.12-1~deb12u1", "6.10-1", "6.9-1"]);
    }
}
