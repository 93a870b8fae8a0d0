//! Errors of the verifier, with its log.

use std::{ffi::CStr, fmt, io, os::fd::OwnedFd};

/// A failed BPF_PROG_LOAD or BPF_BTF_LOAD, with the log of the kernel.
#[derive(Debug)]
pub(super) struct VerifierError {
    pub(super) call: &'static str,
    pub(super) error: io::Error,
    pub(super) log: String,
}

impl VerifierError {
    /// Lines of the log in the text of the error.
    const SHOWN: usize = 6;
    const LONGEST_LINE: usize = 200;

    /// The end of the log, where the verifier states its reason. Empty if there is no log.
    pub(super) fn last_lines(&self) -> Vec<&str> {
        const STATISTICS: [&str; 6] = [
            "processed ",
            "stack depth ",
            "verification time ",
            "insns processed ",
            "mark_read ",
            "subprog ", // a line for each function, in 7.3
        ];
        let lines = self.log.lines().map(str::trim_end).filter(|line| {
            !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start))
        });
        let lines: Vec<_> = lines.collect();
        lines[lines.len().saturating_sub(Self::SHOWN)..].to_vec()
    }
}

impl fmt::Display for VerifierError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the verifier rejected it ({}):", self.error)?;
        for line in self.last_lines() {
            let line: String = line.chars().take(Self::LONGEST_LINE).collect();
            write!(f, "\n    {line}")?;
        }
        write!(f, "\n    (end of {} lines of log)", self.log.lines().count())
    }
}

/// Tries once without a log. After a failure repeats the call to get the log, which takes
/// longer.
pub(super) fn with_log(
    call: &'static str,
    attempt: impl Fn(&mut [u8]) -> io::Result<OwnedFd>,
) -> Result<OwnedFd, VerifierError> {
    /// The largest log that all kernels accept.
    const LARGEST: usize = (u32::MAX >> 8) as usize;
    const ATTEMPTS: usize = 5;
    let mut log = Vec::new();
    // a signal may interrupt the verifier
    let attempt = |log: &mut [u8]| {
        let interrupted = |result: &io::Result<_>| matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        (1..ATTEMPTS)
            .map(|_| attempt(log))
            .find(|result| !interrupted(result))
            .unwrap_or_else(|| attempt(log))
    };
    let mut result = attempt(&mut log);
    for length in [64 << 10, 1 << 20, LARGEST] {
        match &result {
            Ok(_) => break,
            // ENOSPC: the log did not fit
            Err(error) if !log.is_empty() && error.raw_os_error() != Some(libc::ENOSPC) => break,
            Err(_) => {}
        }
        log.clear();
        log.resize(length, 0);
        result = attempt(&mut log);
    }
    result.map_err(|error| {
        let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
        VerifierError { call, error, log: log.into_owned() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_ends_with_the_reason_without_statistics() {
        let mut log: String = (0..50).map(|line| format!("{line}: (b7) r0 = 0\n")).collect();
        log.push_str(
            "R1 type=ctx expected=fp\nprocessed 51 insns (limit 1000000)\n\n\
                      subprog 2 (sum) static insns_self 0 insns_total 0 stack 0\n",
        );
        let error = io::Error::from_raw_os_error(libc::EACCES);
        let error = VerifierError { call: "BPF_PROG_LOAD", error, log };
        assert_eq!(error.last_lines().len(), VerifierError::SHOWN);
        assert_eq!(error.last_lines().last(), Some(&"R1 type=ctx expected=fp"));
        let text = error.to_string();
        assert!(text.contains("49: (b7)") && !text.contains("processed"), "{text}");
    }
}
