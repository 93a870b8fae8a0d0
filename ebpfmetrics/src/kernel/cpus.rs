use std::fs;

use crate::error::{Error, ErrorKind, Result};

/// The CPUs that are online.
pub(crate) struct OnlineCpus(Vec<(u32, u32)>);

impl OnlineCpus {
    pub(crate) fn read() -> Result<Self> {
        ranges("online").map(Self)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.iter().map(|(first, last)| (last - first + 1) as usize).sum()
    }

    pub(crate) fn contains(&self, cpu: u32) -> bool {
        self.0.iter().any(|&(first, last)| (first..=last).contains(&cpu))
    }
}

/// One more than the highest CPU number that this machine may ever use.
pub(crate) fn possible_cpus() -> Result<u32> {
    Ok(ranges("possible")?.iter().map(|(_, last)| last + 1).max().unwrap_or(1))
}

fn ranges(set: &str) -> Result<Vec<(u32, u32)>> {
    let path = format!("/sys/devices/system/cpu/{set}");
    let invalid = |problem: &str| Error::new(ErrorKind::System, format!("{problem} {path}"));
    let text =
        fs::read_to_string(&path).map_err(|error| invalid("cannot read").with_source(error))?;
    parse(&text).ok_or_else(|| invalid("unexpected content of"))
}

/// Parses ranges such as `0-3,8`.
fn parse(text: &str) -> Option<Vec<(u32, u32)>> {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let range = (first.parse().ok()?, last.parse().ok()?);
        (range.0 <= range.1).then_some(range)
    };
    text.trim().split(',').map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_single_numbers_are_parsed() {
        assert_eq!(parse("0-3,8\n"), Some(vec![(0, 3), (8, 8)]));
        assert_eq!(parse("0\n"), Some(vec![(0, 0)]));
        assert_eq!(parse("3-0"), None);
        assert_eq!(parse("a"), None);
    }

    #[test]
    fn this_machine_has_cpus() {
        let online = OnlineCpus::read().unwrap();
        let possible = possible_cpus().unwrap();
        assert!(online.count() >= 1 && possible as usize >= online.count());
        assert!((0..possible).any(|cpu| online.contains(cpu)) && !online.contains(possible));
    }
}
