//! What a machine must have: checks that load nothing.

use std::{collections::BTreeSet, fmt, fs};

use procfs::process::Process;

use super::{BTF_PATH, Kernel, Requirements, in_initial_pid_namespace};
use crate::error::{Error, ErrorKind, Result};

/// Kernel lockdown, from `/sys/kernel/security/lockdown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lockdown {
    /// Off, or not reported by the kernel.
    None,
    /// `integrity`: no obstacle, because probes only read.
    Integrity,
    /// `confidentiality`: eBPF may not read kernel memory.
    Confidentiality,
}

/// One requirement of the probes, and whether the machine meets it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Check {
    /// The requirement.
    pub what: String,
    /// Kind of the error that loading a probe fails with; `None` if the requirement is met.
    pub missing: Option<ErrorKind>,
    /// What was found and, if something is missing, how to fix it.
    pub detail: String,
}

impl Check {
    fn met(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { what: what.into(), missing: None, detail: detail.into() }
    }

    fn missing(what: impl Into<String>, kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self { what: what.into(), missing: Some(kind), detail: detail.into() }
    }
}

/// The result of [`preflight`](crate::preflight()).
///
/// ```
/// let preflight = ebpfmetrics::preflight();
/// println!("{preflight}");
/// if let Err(error) = preflight.require() {
///     eprintln!("cannot measure on this machine: {error}");
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Preflight {
    checks: Vec<Check>,
}

impl Preflight {
    /// All checks, the most important first.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// Returns the first unmet requirement as the error that loading a probe would return.
    ///
    /// # Errors
    /// A requirement is not met.
    pub fn require(&self) -> Result<()> {
        for check in &self.checks {
            if let Some(kind) = check.missing {
                return Err(Error::new(kind, format!("{}: {}", check.what, check.detail)));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, check) in self.checks.iter().enumerate() {
            let mark = if check.missing.is_none() { "ok     " } else { "MISSING" };
            let end = if i + 1 < self.checks.len() { "\n" } else { "" };
            write!(f, "{mark} {}: {}{end}", check.what, check.detail)?;
        }
        Ok(())
    }
}

/// Checks what some probes need.
pub(crate) fn preflight_for(requirements: &[(&'static str, Requirements)]) -> Preflight {
    Facts::gather(requirements).evaluate()
}

/// The error to report when a probe cannot be loaded: what the machine lacks if it lacks
/// something, else the error itself.
pub(crate) fn explain(error: Error, probe: &'static str, requirements: &Requirements) -> Error {
    let may_lack = matches!(
        error.kind(),
        ErrorKind::PermissionDenied
            | ErrorKind::BtfMissing
            | ErrorKind::HookMissing
            | ErrorKind::VerifierRejected
            | ErrorKind::System
    );
    if !may_lack {
        return error;
    }
    match preflight_for(&[(probe, requirements.clone())]).require() {
        Err(lacking) => lacking.with_source(error),
        Ok(()) if error.kind() == ErrorKind::PermissionDenied => {
            let text = format!(
                "{error}; the capabilities are there, so a security module or a seccomp filter \
                 (as of container runtimes) forbids it"
            );
            Error::new(ErrorKind::PermissionDenied, text).with_source(error)
        }
        Ok(()) => error,
    }
}

/// `CAP_*` of linux/capability.h
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Facts about the machine. They are collected first and evaluated afterwards, so a test can
/// remove one fact at a time.
#[derive(Clone, Debug)]
struct Facts {
    kernel_release: String,
    capabilities: Option<u64>,
    btf: bool,
    lockdown: Lockdown,
    /// Missing hooks, each with the probe that needs it.
    missing_hooks: BTreeSet<(&'static str, &'static str)>,
    /// The limit in bytes, if the kernel charges maps to it.
    memlock_limit: Option<u64>,
    in_initial_pid_namespace: bool,
}

impl Facts {
    fn gather(requirements: &[(&'static str, Requirements)]) -> Self {
        let kernel_release = rustix::system::uname().release().to_string_lossy().into_owned();
        let capabilities =
            Process::myself().and_then(|me| me.status()).map(|status| status.capeff).ok();
        let kernel = Kernel::read();
        let missing_hooks = requirements
            .iter()
            .flat_map(|(probe, needs)| {
                let missing =
                    kernel.as_ref().map(|kernel| kernel.missing(needs)).unwrap_or_default();
                missing.into_iter().map(move |hook| (*probe, hook))
            })
            .collect();
        Self {
            kernel_release,
            capabilities,
            btf: kernel.is_ok(),
            lockdown: lockdown(),
            missing_hooks,
            memlock_limit: charges_memlock().then(memlock_limit).flatten(),
            in_initial_pid_namespace: in_initial_pid_namespace(),
        }
    }

    fn evaluate(&self) -> Preflight {
        let mut checks = vec![self.btf(), self.capabilities(), self.lockdown()];
        checks.extend(self.memlock());
        checks.extend(self.hooks());
        checks.push(self.pid_namespace());
        Preflight { checks }
    }

    fn has(&self, capability: u32) -> bool {
        self.capabilities.is_none_or(|set| set & (1 << capability) != 0)
    }

    fn btf(&self) -> Check {
        const WHAT: &str = "kernel type information (BTF)";
        if self.btf {
            return Check::met(WHAT, BTF_PATH);
        }
        let detail = format!(
            "{BTF_PATH} cannot be read; use a kernel built with CONFIG_DEBUG_INFO_BTF=y, \
             5.10 or newer, and mount /sys in a container (running: {})",
            self.kernel_release
        );
        Check::missing(WHAT, ErrorKind::BtfMissing, detail)
    }

    fn capabilities(&self) -> Check {
        const WHAT: &str = "capabilities";
        if self.has(CAP_SYS_ADMIN) {
            return Check::met(WHAT, "CAP_SYS_ADMIN");
        }
        let missing: Vec<_> = [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")]
            .into_iter()
            .filter(|(capability, _)| !self.has(*capability))
            .map(|(_, name)| name)
            .collect();
        if missing.is_empty() {
            return Check::met(WHAT, "CAP_BPF, CAP_PERFMON");
        }
        let detail = format!(
            "missing {}; run as root, or give the program both CAP_BPF and CAP_PERFMON \
             (setcap cap_bpf,cap_perfmon+ep PROGRAM; AmbientCapabilities= in a systemd unit; \
             securityContext.capabilities in Kubernetes)",
            missing.join(" and ")
        );
        Check::missing(WHAT, ErrorKind::PermissionDenied, detail)
    }

    fn lockdown(&self) -> Check {
        const WHAT: &str = "kernel lockdown";
        match self.lockdown {
            Lockdown::None => Check::met(WHAT, "none"),
            Lockdown::Integrity => Check::met(WHAT, "integrity (no obstacle)"),
            Lockdown::Confidentiality => Check::missing(
                WHAT,
                ErrorKind::Lockdown,
                "confidentiality: eBPF may not read kernel memory; boot with \
                 lockdown=integrity or none",
            ),
        }
    }

    fn memlock(&self) -> Option<Check> {
        const WHAT: &str = "locked memory";
        const NEEDED: u64 = 64 << 20;
        let limit = self.memlock_limit?;
        Some(if limit >= NEEDED {
            Check::met(WHAT, "limit high enough")
        } else if self.has(CAP_SYS_RESOURCE) {
            Check::met(WHAT, format!("limit {limit} bytes, raised when a probe is loaded"))
        } else {
            let detail = format!(
                "kernels before 5.11 charge eBPF maps to RLIMIT_MEMLOCK, which is {limit} bytes; \
                 raise it to {NEEDED} (ulimit -l, LimitMEMLOCK=) or give CAP_SYS_RESOURCE"
            );
            Check::missing(WHAT, ErrorKind::MemlockLimit, detail)
        })
    }

    fn hooks(&self) -> Vec<Check> {
        if !self.btf {
            return Vec::new();
        }
        if self.missing_hooks.is_empty() {
            return vec![Check::met("hooks of all probes", "present")];
        }
        let missing = |(probe, hook): &(&str, &str)| {
            let detail = format!(
                "this kernel ({}) lacks it; Linux 5.10 or newer is required",
                self.kernel_release
            );
            Check::missing(format!("hook {hook} of probe {probe}"), ErrorKind::HookMissing, detail)
        };
        self.missing_hooks.iter().map(missing).collect()
    }

    /// No obstacle, but good to know: the walk shows the processes of this namespace only.
    fn pid_namespace(&self) -> Check {
        let detail = if self.in_initial_pid_namespace {
            "the initial one: all processes are visible"
        } else {
            "not the initial one: only its own processes are visible while they run; share the \
             host's namespace (hostPID: true, --pid=host) to see all"
        };
        Check::met("PID namespace", detail)
    }
}

fn lockdown() -> Lockdown {
    let text = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if text.contains("[confidentiality]") {
        Lockdown::Confidentiality
    } else if text.contains("[integrity]") {
        Lockdown::Integrity
    } else {
        Lockdown::None
    }
}

/// Kernels before 5.11 charge maps to `RLIMIT_MEMLOCK`, later ones to the memory cgroup. Only
/// the version shows which; it only decides the advice that is given.
fn charges_memlock() -> bool {
    procfs::KernelVersion::current().is_ok_and(|version| (version.major, version.minor) < (5, 11))
}

fn memlock_limit() -> Option<u64> {
    Some(rustix::process::getrlimit(rustix::process::Resource::Memlock).current.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> Facts {
        Facts {
            kernel_release: "6.1.0".into(),
            capabilities: Some(1 << CAP_BPF | 1 << CAP_PERFMON),
            btf: true,
            lockdown: Lockdown::Integrity,
            missing_hooks: BTreeSet::new(),
            memlock_limit: None,
            in_initial_pid_namespace: true,
        }
    }

    fn refused(facts: &Facts) -> (ErrorKind, String) {
        let error = facts.evaluate().require().unwrap_err();
        (error.kind(), error.to_string())
    }

    #[test]
    fn complete_facts_pass() {
        complete().evaluate().require().unwrap();
    }

    #[test]
    fn root_needs_no_single_capability() {
        let facts = Facts { capabilities: Some(1 << CAP_SYS_ADMIN), ..complete() };
        facts.evaluate().require().unwrap();
    }

    #[test]
    fn each_missing_capability_is_named() {
        for (left, missing, present) in [
            (1_u64 << CAP_BPF, "missing CAP_PERFMON;", "CAP_BPF"),
            (1 << CAP_PERFMON, "missing CAP_BPF;", "CAP_PERFMON"),
            (0, "missing CAP_BPF and CAP_PERFMON;", ""),
        ] {
            let facts = Facts { capabilities: Some(left), ..complete() };
            let (kind, text) = refused(&facts);
            assert_eq!(kind, ErrorKind::PermissionDenied);
            assert!(text.contains(missing) && text.contains(present), "{text}");
        }
    }

    #[test]
    fn missing_btf_names_file_and_option() {
        let (kind, text) = refused(&Facts { btf: false, ..complete() });
        assert_eq!(kind, ErrorKind::BtfMissing);
        assert!(text.contains(BTF_PATH) && text.contains("CONFIG_DEBUG_INFO_BTF"), "{text}");
    }

    #[test]
    fn confidentiality_is_an_obstacle_and_integrity_is_not() {
        let (kind, text) = refused(&Facts { lockdown: Lockdown::Confidentiality, ..complete() });
        assert_eq!(kind, ErrorKind::Lockdown);
        assert!(text.contains("lockdown=integrity"), "{text}");
    }

    #[test]
    fn low_memlock_is_an_obstacle_only_to_who_cannot_raise_it() {
        let low = Facts { memlock_limit: Some(65536), ..complete() };
        let (kind, text) = refused(&low);
        assert_eq!(kind, ErrorKind::MemlockLimit);
        assert!(text.contains("65536") && text.contains("RLIMIT_MEMLOCK"), "{text}");
        let able = low.capabilities.map(|set| set | 1 << CAP_SYS_RESOURCE);
        Facts { capabilities: able, ..low }.evaluate().require().unwrap();
    }

    #[test]
    fn a_missing_hook_names_hook_and_probe() {
        let missing_hooks = BTreeSet::from([("cpu", "sched_process_free")]);
        let (kind, text) = refused(&Facts { missing_hooks, ..complete() });
        assert_eq!(kind, ErrorKind::HookMissing);
        assert!(text.contains("sched_process_free") && text.contains("cpu"), "{text}");
    }

    #[test]
    fn unknown_capabilities_do_not_refuse() {
        Facts { capabilities: None, ..complete() }.evaluate().require().unwrap();
    }
}
