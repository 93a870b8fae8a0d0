use std::fmt;

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Kinds of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The process may not use eBPF: a capability is missing, or a security module or a
    /// seccomp filter forbids it.
    PermissionDenied,
    /// The kernel does not carry its own type information (BTF).
    BtfMissing,
    /// This kernel lacks a tracepoint or iterator that the probe needs.
    HookMissing,
    /// Kernel lockdown forbids reading kernel memory.
    Lockdown,
    /// The limit on locked memory is too low. Only kernels before 5.11 charge eBPF maps to
    /// it.
    MemlockLimit,
    /// The kernel's verifier rejected a program. The text has the end of its log,
    /// [`Error::verifier_log`] all of it.
    VerifierRejected,
    /// A kernel map was too small for what happened; raised only by
    /// [`Losses::check`](crate::Losses::check), a snapshot itself counts it.
    MapFull,
    /// Something that happened could not be counted; raised only by
    /// [`Losses::check`](crate::Losses::check).
    EventsLost,
    /// An option of a builder cannot be met.
    InvalidOption,
    /// The eBPF object lacks something, or declares it differently than expected.
    InvalidObject,
    /// A BPF program wrote a record that is truncated or has unexpected contents.
    InvalidRecord,
    /// A limit of the process or the system is exceeded: open files, memory, or the size of
    /// a map or program. The text names the limit.
    ResourceLimit,
    /// A system call failed for another reason.
    System,
}

/// An error that says what failed, why, and what to do about it.
///
/// The text of the error names the missing capability, kernel feature or file
/// and the remedy; [`kind`](Error::kind) is for programs.
///
/// ```
/// use ebpfmetrics::{CpuProbe, ErrorKind};
///
/// match CpuProbe::builder().load() {
///     Ok(_probe) => {}
///     Err(error) if error.kind() == ErrorKind::PermissionDenied => eprintln!("{error}"),
///     Err(error) => eprintln!("not on this machine: {error}"),
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
    /// An error of a kind, with a text that names what is missing and what to do.
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

    /// The kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The complete log of the kernel's verifier, if it rejected a program.
    pub fn verifier_log(&self) -> Option<&str> {
        self.0.verifier_log.as_deref()
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .field("source", &self.0.source)
            .finish_non_exhaustive()
    }
}

/// Refuses an option of a probe's builder that is out of range.
///
/// # Errors
/// [`ErrorKind::InvalidOption`], with the range.
pub fn check_option(
    probe: &str,
    option: &str,
    value: u32,
    range: std::ops::RangeInclusive<u32>,
) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let text = format!("probe {probe}: {option} is {} to {}", range.start(), range.end());
    Err(Error::new(ErrorKind::InvalidOption, text))
}

/// The most processes that may be listed one by one: the range of `max_exited`.
pub const MAX_EXITED: std::ops::RangeInclusive<u32> = 0..=1 << 24;
