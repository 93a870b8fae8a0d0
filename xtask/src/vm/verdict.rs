//! Evaluates the output of one machine. Everything that is not a proven pass is a problem.

use super::{
    machine::Ending,
    output::{Run, Skip, Target},
    version::Version,
};

/// The counts of one kernel; skipped tests are not among the passed ones.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
    pub(super) ignored: usize,
    /// Valid skips, by target.
    pub(super) skips: Vec<(String, Skip)>,
    pub(super) problems: Vec<String>,
}

pub(super) fn judge(run: &Run, ending: Ending, seconds: u64, console: &str) -> Verdict {
    let mut verdict = Verdict::default();
    let position = run.position();
    match ending {
        Ending::TimedOut => verdict.problem(format!("silent for {seconds} s: hung {position}")),
        Ending::Interrupted => verdict.problem(format!("interrupted {position}")),
        Ending::Stopped => {}
    }
    if let Some(line) = console.lines().find(|line| line.contains("Kernel panic")) {
        verdict.problem(format!("{} {position}", line.trim()));
    } else if ending == Ending::Stopped && run.exit.is_none() {
        verdict.problem(format!("the machine stopped without an exit code, {position}"));
    }

    let kernel = run.release.as_deref().and_then(|release| release.parse().ok());
    for target in &run.targets {
        verdict.add(target, kernel);
    }
    if verdict.passed + verdict.failed + verdict.skipped == 0 {
        verdict.problem("no test ran".into());
    }
    if run.exit.is_some_and(|exit| exit != 0) && verdict.problems.is_empty() {
        verdict.problem("the suite failed although no test did".into());
    }
    for (number, support) in run.support.iter().enumerate() {
        let differs =
            |other: &&super::output::Support| other.metric == support.metric && **other != *support;
        if run.support[..number].iter().find(differs).is_some() {
            verdict.problem(format!(
                "metric {} was reported twice with different values",
                support.metric
            ));
        }
        if !matches!(support.value.as_str(), "yes" | "no") {
            verdict.problem(format!("metric {} must be yes or no", support.metric));
        }
    }
    verdict
}

impl Verdict {
    fn problem(&mut self, text: String) {
        self.problems.push(text);
    }

    fn add(&mut self, target: &Target, kernel: Option<Version>) {
        let name = &target.name;
        let last = target.last.as_deref().unwrap_or("(before the first)");
        let counts = target.counts.unwrap_or_default();
        for test in &target.failed {
            self.problem(format!("{name}: {test} failed"));
        }
        match (target.counts, target.exit) {
            (Some(_), Some(0)) => {}
            (Some(counts), Some(101)) if counts.failed > 0 => {}
            (_, Some(exit)) => {
                self.failed += 1;
                self.problem(format!("{name}: died with exit code {exit}; last test {last}"));
            }
            // The machine ended inside this program; that is told once, above.
            (_, None) => self.failed += 1,
        }

        let mut skips = target.skips.clone();
        skips.retain(|skip| !is_failed(target, skip));
        self.passed += counts.passed.saturating_sub(skips.len());
        self.failed += counts.failed;
        self.ignored += counts.ignored;
        for skip in skips {
            let refusal = match (skip.needs, kernel) {
                (Some(needs), Some(kernel)) if needs > kernel => {
                    self.skipped += 1;
                    self.skips.push((name.clone(), skip));
                    continue;
                }
                (Some(needs), _) => format!("the kernel is not older than {needs}"),
                (None, _) => "the SKIP line has no kernel version".into(),
            };
            self.failed += 1;
            let Skip { test, reason, .. } = skip;
            self.problem(format!("{name}: {test} must not skip: {refusal} ({reason})"));
        }
    }
}

/// A test may say that it skips and fail all the same.
fn is_failed(target: &Target, skip: &Skip) -> bool {
    let is_it = |test: &String| test == &skip.test || test.ends_with(&format!("::{}", skip.test));
    target.failed.iter().any(is_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(lines: &[&str]) -> Verdict {
        let mut text = String::from("VM-KERNEL 6.1.0-56-cloud-amd64\nVM-BEGIN cpu 1\n");
        text.push_str(&lines.join("\n"));
        judge(&Run::parse(&text), Ending::Stopped, 180, "")
    }

    #[test]
    fn clean_run_has_no_problem() {
        let verdict = verdict(&[
            "test a ... ok",
            "test b ... SKIP test=b needs=6.2 reason=newer",
            "ok",
            "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured",
            "VM-END cpu 0 2",
            "VM-EXIT 0",
        ]);
        assert_eq!((verdict.passed, verdict.skipped, verdict.ignored), (1, 1, 1));
        assert_eq!(verdict.skips[0].1.reason, "newer");
        assert!(verdict.problems.is_empty(), "{verdict:?}");
    }

    #[test]
    fn skip_without_ground_fails() {
        for needs in ["needs=6.1", "needs=5.10", "needs=?", ""] {
            let skip = format!("test b ... SKIP test=b {needs} reason=lazy");
            let verdict = verdict(&[
                &skip,
                "ok",
                "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured",
                "VM-END cpu 0 2",
                "VM-EXIT 0",
            ]);
            assert_eq!((verdict.passed, verdict.failed, verdict.skipped), (0, 1, 0), "{needs}");
            assert!(verdict.problems[0].contains("must not skip"), "{needs}");
        }
    }

    #[test]
    fn crash_and_silence_and_nothing_fail() {
        let crash = verdict(&["test a ... ", "VM-END cpu 139 2", "VM-EXIT 1"]);
        assert!(crash.problems[0].contains("exit code 139; last test a"), "{crash:?}");
        let silent = verdict(&["test a ... "]);
        assert!(silent.problems[0].contains("without an exit code, in cpu, test a"), "{silent:?}");
        let nothing = verdict(&[
            "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured",
            "VM-END cpu 0 2",
            "VM-EXIT 0",
        ]);
        assert_eq!(nothing.problems, ["no test ran"]);
    }

    #[test]
    fn panic_and_time_limit_say_where() {
        let run = Run::parse("VM-BEGIN cpu 1\ntest a ... ");
        let panic = "[ 3.1] Kernel panic - not syncing: sysrq";
        let panicked = judge(&run, Ending::Stopped, 180, panic);
        assert_eq!(panicked.problems[0], format!("{panic} in cpu, test a"));
        let hung = judge(&run, Ending::TimedOut, 180, "");
        assert_eq!(hung.problems[0], "silent for 180 s: hung in cpu, test a");
        assert_eq!(hung.failed, 1);
    }
}
