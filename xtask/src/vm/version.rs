//! Kernel versions as the matrix compares them: major and minor.

use std::{fmt, str::FromStr};

use anyhow::{Context, Error, Result};
use serde::Deserialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Version {
    pub(super) major: u32,
    pub(super) minor: u32,
}

/// Reads the front of a release, so `6.1.0-56-cloud-amd64` is 6.1.
impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Version> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next().and_then(|n| n.parse().ok());
        let major = next().with_context(|| format!("{text:?} is not a kernel version"))?;
        let minor = next().with_context(|| format!("{text:?} has no minor version"))?;
        Ok(Version { major, minor })
    }
}

impl TryFrom<String> for Version {
    type Error = Error;

    fn try_from(text: String) -> Result<Version> {
        text.parse()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn compares_by_number_not_by_text() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        assert!(version("6.1.0-56-cloud-amd64") < version("6.12.117+deb12-cloud-amd64"));
        assert_eq!(version("7.3.4+deb13").to_string(), "7.3");
        assert!("six".parse::<Version>().is_err());
        assert!("6".parse::<Version>().is_err());
    }
}
