//! Parses the output of the test programs in the machine.
//!
//! Tests write markers past libtest, which then appear in the middle of libtest's lines:
//! `test name ... SKIP test=name`. So markers are searched for anywhere in a line, and counts and
//! failures are taken from libtest's summary.

use super::version::Version;

/// Everything that one machine reported.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) release: Option<String>,
    pub(super) targets: Vec<Target>,
    pub(super) support: Vec<Support>,
    /// Exit status of the suite; `None` if the machine stopped before its end.
    pub(super) exit: Option<i32>,
}

#[derive(Debug, Default)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) counts: Option<Counts>,
    pub(super) failed: Vec<String>,
    pub(super) skips: Vec<Skip>,
    /// The test that was started last.
    pub(super) last: Option<String>,
    pub(super) exit: Option<i32>,
    /// libtest's output of failed tests.
    pub(super) details: String,
    /// Seconds since boot.
    pub(super) began: f64,
    pub(super) ended: Option<f64>,
    section: Section,
}

/// libtest's own count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) ignored: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Skip {
    pub(super) test: String,
    pub(super) needs: Option<Version>,
    pub(super) reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Support {
    pub(super) metric: String,
    pub(super) value: String,
    pub(super) note: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Section {
    #[default]
    Tests,
    Successes,
    Failures,
}

impl Run {
    pub(super) fn parse(text: &str) -> Run {
        let mut run = Run::default();
        for line in text.split('\n').map(|line| line.trim_end_matches('\r')) {
            run.line(line);
        }
        run
    }

    fn line(&mut self, line: &str) {
        if let Some(release) = line.strip_prefix("VM-KERNEL ") {
            self.release = Some(release.to_owned());
        } else if let Some(rest) = line.strip_prefix("VM-BEGIN ") {
            let mut words = rest.split(' ');
            let name = words.next().unwrap_or_default().to_owned();
            let began = number(words.next()).unwrap_or_default();
            self.targets.push(Target { name, began, ..Target::default() });
        } else if let Some(rest) = line.strip_prefix("VM-END ") {
            let mut words = rest.split(' ').skip(1);
            if let Some(target) = self.targets.last_mut() {
                target.exit = number(words.next());
                target.ended = number(words.next());
            }
        } else if let Some(status) = line.strip_prefix("VM-EXIT ") {
            self.exit = number(Some(status));
        } else {
            if let Some(support) = after(line, "SUPPORT metric=").map(support) {
                self.support.push(support);
            }
            if let Some(target) = self.targets.last_mut() {
                target.line(line);
            }
        }
    }

    /// Where the machine was when it stopped answering.
    pub(super) fn position(&self) -> String {
        match self.targets.last() {
            None => "before the first test".into(),
            Some(target) if target.exit.is_some() => format!("after {}", target.name),
            Some(Target { name, last: None, .. }) => format!("in {name}, before its first test"),
            Some(Target { name, last: Some(test), .. }) => format!("in {name}, test {test}"),
        }
    }
}

impl Target {
    fn line(&mut self, line: &str) {
        if let Some(skip) = after(line, "SKIP test=").map(skip)
            && !self.skips.iter().any(|known| known.test == skip.test)
        {
            self.skips.push(skip);
        }
        if let Some(counts) = after(line, "test result: ").and_then(counts) {
            self.counts = Some(counts);
            self.section = Section::Tests;
            return;
        }
        match line {
            "successes:" => self.section = Section::Successes,
            "failures:" => {
                // The heading comes twice: with the outputs, then with the names.
                self.section = Section::Failures;
                self.failed.clear();
            }
            _ => {}
        }
        match self.section {
            Section::Tests => {
                if let Some((test, _)) =
                    line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
                {
                    let test = test.strip_suffix(" - should panic").unwrap_or(test);
                    self.last = Some(test.to_owned());
                }
            }
            Section::Successes => {}
            Section::Failures => {
                self.details.push_str(line);
                self.details.push('\n');
                if let Some(test) = line.strip_prefix("    ") {
                    self.failed.push(test.to_owned());
                }
            }
        }
    }
}

fn after<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
    line.split_once(marker).map(|(_, rest)| rest)
}

fn number<N: std::str::FromStr>(word: Option<&str>) -> Option<N> {
    word?.trim().parse().ok()
}

/// `NAME needs=6.4 reason=TEXT`
fn skip(rest: &str) -> Skip {
    let (test, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let needs = rest.trim_start().strip_prefix("needs=").unwrap_or_default();
    let (needs, rest) = needs.split_once(' ').unwrap_or((needs, ""));
    let reason = after(rest, "reason=").unwrap_or("none given");
    Skip { test: test.into(), needs: needs.parse().ok(), reason: reason.trim().into() }
}

/// `NAME value=yes note=TEXT`
fn support(rest: &str) -> Support {
    let (metric, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let value = rest.trim_start().strip_prefix("value=").unwrap_or_default();
    let (value, rest) = value.split_once(' ').unwrap_or((value, ""));
    let note = after(rest, "note=").unwrap_or_default();
    Support { metric: metric.into(), value: value.into(), note: note.trim().into() }
}

/// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; ...`
fn counts(summary: &str) -> Option<Counts> {
    let (_, summary) = summary.split_once(". ")?;
    let count = |what: &str| {
        summary.split(';').find_map(|part| number(part.trim().strip_suffix(what)?.into()))
    };
    Some(Counts {
        passed: count(" passed")?,
        failed: count(" failed")?,
        ignored: count(" ignored")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
noise\r
VM-KERNEL 6.1.0-56-cloud-amd64\r
VM-BEGIN cpu 2.50\r
\r
running 4 tests\r
test exact ... ok\r
test nested::new_hook ... SKIP test=nested::new_hook needs=6.5 reason=no block_io_start: \"x\"\r
ok\r
test refuses - should panic ... ok\r
test wrong ... SUPPORT metric=cpu.user value=yes note=from the ledger | exact\r
FAILED\r
\r
successes:\r
\r
---- exact stdout ----\r
test not a test ... ok\r
SUPPORT metric=mem.peak value=no note=\r
\r
successes:\r
    exact\r
\r
failures:\r
\r
---- wrong stdout ----\r
    indented output\r
\r
failures:\r
    wrong\r
\r
test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\r
\r
VM-END cpu 101 3.25\r
VM-BEGIN disk 3.25\r
test slow ... ";

    #[test]
    fn reads_counts_failures_skips_and_support() {
        let run = Run::parse(LOG);
        assert_eq!(run.release.as_deref(), Some("6.1.0-56-cloud-amd64"));
        let cpu = &run.targets[0];
        assert_eq!(cpu.counts, Some(Counts { passed: 3, failed: 1, ignored: 0 }));
        assert_eq!(cpu.failed, ["wrong"]);
        assert_eq!(cpu.last.as_deref(), Some("wrong"));
        assert_eq!((cpu.exit, cpu.began, cpu.ended), (Some(101), 2.5, Some(3.25)));
        assert_eq!(
            cpu.skips,
            [Skip {
                test: "nested::new_hook".into(),
                needs: Some("6.5".parse().unwrap()),
                reason: "no block_io_start: \"x\"".into(),
            }]
        );
        assert!(cpu.details.contains("indented output"));
        let support: Vec<_> =
            run.support.iter().map(|s| (&*s.metric, &*s.value, &*s.note)).collect();
        assert_eq!(
            support,
            [("cpu.user", "yes", "from the ledger | exact"), ("mem.peak", "no", ""),]
        );
    }

    #[test]
    fn says_where_it_stopped() {
        assert_eq!(Run::parse(LOG).position(), "in disk, test slow");
        assert_eq!(Run::parse(LOG).exit, None);
        assert_eq!(Run::parse("").position(), "before the first test");
        let between = "VM-BEGIN a 1\nVM-END a 0 2\n";
        assert_eq!(Run::parse(between).position(), "after a");
    }

    #[test]
    fn a_malformed_skip_names_no_version() {
        let run = Run::parse("VM-BEGIN a 1\nSKIP test=t because=no\n");
        assert_eq!(run.targets[0].skips[0].needs, None);
    }
}
