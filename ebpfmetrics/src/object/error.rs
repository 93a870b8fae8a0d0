//! Texts and kinds of the errors of this module.

use std::{error::Error as StdError, fmt::Display, io};

use super::verifier_error::VerifierError;
use crate::error::{Error, ErrorKind};

/// The object lacks something, or declares it differently.
pub(super) fn invalid(object: &str, problem: impl Display) -> Error {
    Error::new(ErrorKind::InvalidObject, format!("object {object}: {problem}"))
}

/// A system call failed. `target` is the map or program that it was called for.
pub(super) fn failed(object: &str, call: &str, target: impl Display, error: io::Error) -> Error {
    let (kind, remedy) = explain(call, &error);
    let text = format!("object {object}: {call} failed for {target}: {error}{remedy}");
    Error::new(kind, text).with_source(error)
}

/// Loading BTF or a program failed.
pub(super) fn rejected(object: &str, target: impl Display, failure: VerifierError) -> Error {
    let VerifierError { call, .. } = failure;
    let (kind, _) = explain(call, &failure.error);
    let by_verifier =
        failure.error.raw_os_error() == Some(libc::E2BIG) || kind == ErrorKind::System;
    if by_verifier && call == "BPF_PROG_LOAD" && !failure.last_lines().is_empty() {
        let text = format!("object {object}: {call} failed for {target}: {failure}");
        return Error::new(ErrorKind::VerifierRejected, text)
            .with_source(failure.error)
            .with_verifier_log(failure.log);
    }
    let error = failed(object, call, target, failure.error);
    if failure.log.is_empty() { error } else { error.with_verifier_log(failure.log) }
}

/// Kind of a failure, and what to do about it.
fn explain(call: &str, error: &io::Error) -> (ErrorKind, &'static str) {
    match error.raw_os_error() {
        // EACCES is the verifier's answer to an invalid program
        Some(libc::EPERM) => (
            ErrorKind::PermissionDenied,
            "; eBPF needs CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN), and a security module or a \
             seccomp filter (as of container runtimes) may forbid it",
        ),
        Some(libc::EMFILE) => (
            ErrorKind::ResourceLimit,
            "; this process has too many open files: raise RLIMIT_NOFILE (ulimit -n, or \
             LimitNOFILE= of a systemd service)",
        ),
        Some(libc::ENFILE) => (
            ErrorKind::ResourceLimit,
            "; the system has too many open files: raise the sysctl fs.file-max",
        ),
        Some(libc::ENOMEM) => (
            ErrorKind::ResourceLimit,
            "; the kernel has no memory for it: reduce the number of map entries, or raise \
             the memory limit of the cgroup (memory.max)",
        ),
        Some(libc::E2BIG | libc::ENOSPC) if call.starts_with("BPF_MAP_UPDATE") => {
            (ErrorKind::ResourceLimit, "; the map is full: raise its max_entries")
        }
        Some(libc::E2BIG) if call == "BPF_MAP_CREATE" => {
            (ErrorKind::ResourceLimit, "; the map is too large: reduce its max_entries")
        }
        Some(libc::E2BIG) if call == "BPF_PROG_LOAD" => {
            (ErrorKind::ResourceLimit, "; the program exceeds the kernel's limit on its size")
        }
        Some(libc::E2BIG) if call == "BPF_RAW_TRACEPOINT_OPEN" => (
            ErrorKind::ResourceLimit,
            "; the tracepoint has the largest number of programs: detach other tracers",
        ),
        Some(libc::ENOSPC | libc::E2BIG) => {
            (ErrorKind::ResourceLimit, "; a limit of the kernel is exceeded")
        }
        _ => (ErrorKind::System, ""),
    }
}

/// This kernel lacks a hook that a program needs.
pub(super) fn hook_missing(object: &str, program: &str, hook: impl Display) -> Error {
    let text = format!("object {object}: this kernel has no {hook}, needed by program {program}");
    Error::new(ErrorKind::HookMissing, text)
}

/// An error of parsing or relocating the object.
pub(super) fn unusable(
    object: &str,
    doing: &str,
    error: impl StdError + Send + Sync + 'static,
) -> Error {
    invalid(object, format!("{doing} failed: {}", chain(&error))).with_source(error)
}

/// The texts of an error and its sources. Each is cut: aya prints complete type tables.
fn chain(error: &(dyn StdError + 'static)) -> String {
    const LONGEST: usize = 300;
    let mut texts: Vec<String> = Vec::new();
    let mut error = Some(error);
    while let Some(this) = error {
        let text: String = this.to_string().chars().take(LONGEST).collect();
        if texts.last() != Some(&text) {
            texts.push(text);
        }
        error = this.source();
    }
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_named_with_a_remedy() {
        let error =
            |call, number| failed("cpu", call, "map m", io::Error::from_raw_os_error(number));
        let text = |call, number| {
            let error = error(call, number);
            assert_eq!(error.kind(), ErrorKind::ResourceLimit, "{error}");
            error.to_string()
        };
        assert!(text("BPF_MAP_CREATE", libc::EMFILE).contains("RLIMIT_NOFILE (ulimit -n"));
        assert!(text("BPF_MAP_CREATE", libc::ENFILE).contains("fs.file-max"));
        assert!(text("BPF_MAP_CREATE", libc::ENOMEM).contains("memory.max"));
        assert!(text("BPF_MAP_UPDATE_ELEM", libc::E2BIG).contains("max_entries"));
        let denied = error("BPF_MAP_CREATE", libc::EPERM);
        assert_eq!(denied.kind(), ErrorKind::PermissionDenied);
        for part in ["object cpu", "map m", "BPF_MAP_CREATE", "CAP_BPF"] {
            assert!(denied.to_string().contains(part), "{denied}");
        }
    }
}
