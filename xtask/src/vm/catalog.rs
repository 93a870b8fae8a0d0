//! The committed list of kernels, `kernels.toml`.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{arch::Arch, version::Version};

const CATALOG: &str = include_str!("../../kernels.toml");

/// One package of one kernel, as pinned.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pin {
    pub(super) series: Version,
    pub(super) arch: String,
    pub(super) suite: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) sha256: String,
}

impl Pin {
    pub(super) fn is_complete(&self) -> bool {
        !self.version.is_empty() && !self.sha256.is_empty()
    }

    /// The line for the catalog that pins this package.
    pub(super) fn line(&self) -> String {
        let Pin { series, arch, suite, name, version, sha256 } = self;
        format!(
            r#"    {{ series = "{series}", arch = "{arch}", suite = "{suite}", name = "{name}", version = "{version}", sha256 = "{sha256}" }},"#
        )
    }
}

/// One kernel: its package, or its kernel package and its modules package.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    pub(super) series: Version,
    pub(super) arch: Arch,
    pub(super) pins: Vec<Pin>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalog {
    packages: Vec<Pin>,
}

/// Every kernel of `arch`, oldest first.
pub(super) fn kernels(arch: Arch) -> Result<Vec<Kernel>> {
    let catalog: Catalog = toml::from_str(CATALOG).context("kernels.toml")?;
    let mut kernels: Vec<Kernel> = Vec::new();
    for pin in catalog.packages.into_iter().filter(|pin| pin.arch == arch.name()) {
        match kernels.iter_mut().find(|kernel| kernel.series == pin.series) {
            Some(kernel) => kernel.pins.push(pin),
            None => kernels.push(Kernel { series: pin.series, arch, pins: vec![pin] }),
        }
    }
    kernels.sort_by_key(|kernel| kernel.series);
    ensure!(!kernels.is_empty(), "kernels.toml has no kernel for {}", arch.name());
    Ok(kernels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn catalog_is_complete_and_pinned() {
        let series: Vec<_> =
            kernels(Arch::Amd64).unwrap().iter().map(|k| k.series.to_string()).collect();
        assert_eq!(series, ["5.10", "6.1", "6.12", "7.3"]);
        for arch in [Arch::Amd64, Arch::Arm64] {
            for pin in kernels(arch).unwrap().iter().flat_map(|kernel| &kernel.pins) {
                assert!(pin.is_complete(), "{} is not pinned", pin.name);
                assert_eq!(pin.sha256.len(), 64, "{}", pin.name);
            }
        }
    }

    #[test]
    fn printed_line_reads_back() {
        for kernel in kernels(Arch::Amd64).unwrap() {
            for pin in kernel.pins {
                let line = pin.line();
                assert!(CATALOG.contains(&line), "{line}");
            }
        }
    }
}
