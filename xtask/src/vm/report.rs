//! The report: one line when a kernel is done, then all problems, the skipped tests and the
//! table.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use super::{machine::Logs, output::Run, verdict::Verdict, version::Version};

/// How much of a log to show when a machine did not end well.
const TAIL: usize = 60;

/// One kernel's part of the matrix.
pub(super) struct Outcome {
    pub(super) series: Version,
    pub(super) run: Run,
    pub(super) verdict: Verdict,
    pub(super) time: Duration,
    pub(super) logs: PathBuf,
    pub(super) substitute: Option<String>,
}

impl Outcome {
    pub(super) fn is_good(&self) -> bool {
        self.verdict.problems.is_empty()
    }

    /// Whether to show the logs, because libtest could not report.
    fn broke_down(&self) -> bool {
        self.run.exit.is_none() || self.run.targets.iter().any(|target| target.counts.is_none())
    }

    fn row(&self) -> [String; 9] {
        let release = self.run.release.clone().unwrap_or_else(|| "(unknown release)".into());
        let boot = self.run.targets.first().map(|target| target.began);
        let Verdict { passed, failed, skipped, ignored, .. } = &self.verdict;
        [
            self.series.to_string(),
            release,
            passed.to_string(),
            failed.to_string(),
            skipped.to_string(),
            ignored.to_string(),
            boot.map_or_else(|| "-".into(), |boot| format!("{boot:.1} s")),
            format!("{:.1} s", self.time.as_secs_f64()),
            if self.is_good() { "ok" } else { "FAILED" }.to_owned(),
        ]
    }
}

pub(super) fn progress(outcome: &Outcome) {
    let [series, _, passed, failed, skipped, _, _, time, result] = outcome.row();
    println!("{series}: {passed} passed, {failed} failed, {skipped} skipped in {time}: {result}");
}

pub(super) fn summary(outcomes: &[Outcome]) {
    for outcome in outcomes.iter().filter(|outcome| !outcome.is_good()) {
        breakdown(outcome);
    }
    skips(outcomes);
    for text in outcomes.iter().filter_map(|outcome| outcome.substitute.as_ref()) {
        println!("\n{text}");
    }
    println!();
    table(outcomes);
}

fn breakdown(outcome: &Outcome) {
    println!("\n==== {} ====", outcome.series);
    for target in outcome.run.targets.iter().filter(|target| !target.failed.is_empty()) {
        println!("---- {} ----\n{}", target.name, target.details.trim());
    }
    for problem in &outcome.verdict.problems {
        println!("{}: {problem}", outcome.series);
    }
    let logs = Logs::in_directory(&outcome.logs);
    if outcome.broke_down() {
        for log in [&logs.console, &logs.output, &logs.qemu] {
            let text = tail(&read(log));
            if !text.is_empty() {
                println!("---- end of {} ----\n{text}", log.display());
            }
        }
    }
    println!("logs: {}", outcome.logs.display());
}

/// Each reason once, with the tests and the kernels that it is for.
fn skips(outcomes: &[Outcome]) {
    let mut kernels: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for outcome in outcomes {
        for (target, skip) in &outcome.verdict.skips {
            let needs = skip.needs.map_or_else(|| "?".into(), |needs| needs.to_string());
            let what = format!("{target}::{} needs {needs}: {}", skip.test, skip.reason);
            kernels.entry(what).or_default().push(outcome.series.to_string());
        }
    }
    if !kernels.is_empty() {
        println!("\nskipped:");
    }
    for (what, kernels) in kernels {
        println!("  {what} (on {})", kernels.join(", "));
    }
}

fn table(outcomes: &[Outcome]) {
    let heading =
        ["kernel", "release", "passed", "failed", "skipped", "ignored", "boot", "time", "result"];
    let rows: Vec<_> =
        [heading.map(str::to_owned)].into_iter().chain(outcomes.iter().map(Outcome::row)).collect();
    let widths: [usize; 9] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    for row in &rows {
        let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
            // Numbers to the right.
            if (2..8).contains(&column) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

pub(super) fn read(log: &std::path::Path) -> String {
    fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).replace('\r', "")).unwrap_or_default()
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::tail;

    #[test]
    fn tail_is_the_end() {
        let text: String = (0..100).map(|n| format!("{n}\n")).collect();
        let end = tail(&text);
        assert_eq!(end.lines().count(), 60);
        assert!(end.starts_with("40") && end.ends_with("99"));
        assert_eq!(tail(""), "");
    }
}
