use std::fmt;

/// Result of the functions of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Category of an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller may not use eBPF. A capability is missing, or a security module or a
    /// seccomp filter denies it.
    PermissionDenied,
    /// The kernel has no type information (BTF).
    BtfMissing,
    /// The kernel lacks a tracepoint, iterator or function that the probe needs.
    HookMissing,
    /// Kernel lockdown forbids reading kernel memory.
    Lockdown,
    /// The limit on locked memory is too low. Kernels before 5.11 charge eBPF maps to it.
    MemlockLimit,
    /// Another limit is exhausted: open files, memory, or the memory limit of a cgroup.
    ResourceLimit,
    /// The kernel's verifier rejected a program. See [`Error::verifier_log`].
    VerifierRejected,
    /// There is no process with this pid.
    NoSuchProcess,
    /// A kernel map was full. Only [`Losses::check`](crate::snapshot::Losses::check)
    /// returns this; a snapshot counts it as a loss.
    MapFull,
    /// Some events could not be counted. Only
    /// [`Losses::check`](crate::snapshot::Losses::check) returns this.
    EventsLost,
    /// An option of a builder is invalid.
    InvalidOption,
    /// The eBPF object does not contain what the probe expects.
    InvalidObject,
    /// A record from a BPF program has an unexpected size or content.
    InvalidRecord,
    /// A system call failed for another reason.
    System,
}

/// Describes what failed, why, and how to fix it.
///
/// The text names the missing capability, kernel feature or file. Programs can match on
/// [`kind`](Error::kind).
///
/// ```
/// use ebpfmetrics::{ErrorKind, snapshot::Losses};
///
/// match Losses::default().check() {
///     Ok(()) => {}
///     Err(error) if error.kind() == ErrorKind::MapFull => eprintln!("{error}"),
///     Err(error) => eprintln!("incomplete: {error}"),
/// }
/// ```
#[derive(thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Inner>);

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Inner {
    kind: ErrorKind,
    message: String,
    verifier_log: Option<String>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Creates an error. The message should say what is missing and how to fix it.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), verifier_log: None, source: None }))
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub(crate) fn with_verifier_log(mut self, log: String) -> Self {
        self.0.verifier_log = Some(log);
        self
    }

    /// Category of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Log of the kernel's verifier, if it rejected a program.
    pub fn verifier_log(&self) -> Option<&str> {
        self.0.verifier_log.as_deref()
    }
}

/// Leaves out the verifier's log, which can have thousands of lines.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .field("source", &self.0.source)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn an_error_keeps_its_kind_source_and_log() {
        let error = Error::new(ErrorKind::VerifierRejected, "program x was rejected")
            .with_source(std::io::Error::other("EACCES"))
            .with_verifier_log("R1 invalid mem access".into());
        assert_eq!(error.kind(), ErrorKind::VerifierRejected);
        assert_eq!(error.to_string(), "program x was rejected");
        assert_eq!(error.source().unwrap().to_string(), "EACCES");
        assert_eq!(error.verifier_log(), Some("R1 invalid mem access"));
        assert!(!format!("{error:?}").contains("R1"));
    }
}
