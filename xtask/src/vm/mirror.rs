//! Finds the mirror for Debian's packages: the one that this machine's apt uses. The project
//! itself names no host.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::tools;

/// Debian's archive and its security archive, two trees on one mirror or on two.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mirror {
    main: String,
    security: String,
}

impl Mirror {
    /// `root` is what comes before `/debian` and `/debian-security`.
    fn below(root: &str) -> Mirror {
        let root = root.trim_end_matches('/');
        Mirror { main: format!("{root}/debian"), security: format!("{root}/debian-security") }
    }

    pub(super) fn choose(root: Option<&str>) -> Result<Mirror> {
        root.map_or_else(Mirror::of_this_machine, |root| Ok(Mirror::below(root)))
    }

    /// Asks apt itself, which reads every format of its sources. It needs no
    /// downloaded lists for this.
    fn of_this_machine() -> Result<Mirror> {
        let codename = codename().context("set a mirror with --mirror")?;
        let uris = tools::output(
            tools::command("apt-get").args(["update", "--print-uris"]).env("LC_ALL", "C"),
        )?;
        Mirror::from_uris(&uris, &codename)
            .context("this machine's apt sources contain no Debian mirror: set one with --mirror")
    }

    /// Third parties name their suites after Debian's too, but not with the
    /// component `main`.
    fn from_uris(uris: &str, codename: &str) -> Option<Mirror> {
        let base_of = |suite: &str| {
            let index = format!("/dists/{suite}/main/binary-");
            uris.lines()
                .find_map(|line| line.trim_start_matches('\'').split_once(&index))
                .map(|(base, _)| base.to_owned())
        };
        let suites = [codename, "stable", "oldstable", "testing", "unstable", "sid"];
        let main = suites.iter().find_map(|suite| base_of(suite));
        let security = suites.iter().find_map(|suite| base_of(&format!("{suite}-security")));
        match (main, security) {
            (Some(main), Some(security)) => Some(Mirror { main, security }),
            // Mirrors carry the two trees side by side.
            (Some(main), None) => main.strip_suffix("/debian").map(Mirror::below),
            (None, Some(security)) => security.strip_suffix("/debian-security").map(Mirror::below),
            (None, None) => None,
        }
    }

    pub(super) fn base(&self, suite: &str) -> &str {
        if suite.ends_with("-security") { &self.security } else { &self.main }
    }
}

/// The name of this machine's Debian release.
pub(super) fn codename() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let value = |key: &str| release.lines().find_map(|line| line.strip_prefix(key));
    ensure!(value("ID=") == Some("debian"), "this machine is not Debian");
    Ok(value("VERSION_CODENAME=").unwrap_or("sid").trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::Mirror;

    const SHOP: &str =
        "'https://shop.example/linux/debian/dists/bookworm/stable/binary-amd64/Packages.xz' x 0\n";
    const MAIN: &str =
        "'http://mirror.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' x 0\n";
    const SECURITY: &str =
        "'http://sec.example/debian-security/dists/bookworm-security/main/binary-amd64/P.xz' x 0\n";

    #[test]
    fn takes_debian_not_a_third_party() {
        let uris = [SHOP, MAIN, SECURITY].concat();
        let mirror = Mirror::from_uris(&uris, "bookworm").unwrap();
        assert_eq!(mirror.base("trixie-backports"), "http://mirror.example/debian");
        assert_eq!(mirror.base("bullseye-security"), "http://sec.example/debian-security");
    }

    #[test]
    fn one_tree_gives_the_other() {
        let mirror = Mirror::from_uris(MAIN, "bookworm").unwrap();
        assert_eq!(mirror, Mirror::below("http://mirror.example/"));
    }

    #[test]
    fn no_mirror_is_no_guess() {
        assert_eq!(Mirror::from_uris(SHOP, "bookworm"), None);
    }
}
