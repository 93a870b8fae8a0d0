//! What is said where a probe cannot be loaded, in places that are really so.

use ebpfmetrics::{CpuProbe, ErrorKind, preflight};
use ebpfmetrics_suite::{Kernel, Workload, kernel};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

fn load_in(place: &str) -> String {
    Workload::start_without_waiting(WORKLOAD, &["load", place]).line()
}

#[test]
fn without_privilege_the_capabilities_are_named() {
    let line = load_in("unprivileged");
    assert!(line.starts_with("PermissionDenied "), "{line}");
    assert!(line.contains("CAP_BPF") && line.contains("CAP_PERFMON"), "{line}");
}

#[test]
fn without_one_capability_that_one_is_named() {
    let line = load_in("without-cap-bpf");
    assert!(line.starts_with("PermissionDenied "), "{line}");
    assert!(line.contains("missing CAP_BPF;"), "{line}");
}

#[test]
fn two_capabilities_are_enough() {
    let line = load_in("two-capabilities");
    if kernel() < Kernel(5, 11) {
        // its maps do not fit into the usual limit on locked memory
        assert!(line.starts_with("ok ") || line.starts_with("MemlockLimit "), "{line}");
    } else {
        assert!(line.starts_with("ok "), "{line}");
    }
}

#[test]
fn a_low_limit_on_locked_memory_is_named_where_it_counts() {
    let line = load_in("low-memlock");
    if kernel() < Kernel(5, 11) {
        assert!(line.starts_with("MemlockLimit "), "{line}");
        assert!(line.contains("RLIMIT_MEMLOCK") && line.contains("65536"), "{line}");
    } else {
        assert!(line.starts_with("ok "), "{line}");
    }
}

#[test]
fn without_btf_the_file_and_the_option_are_named() {
    let line = load_in("without-btf");
    assert!(line.starts_with("BtfMissing "), "{line}");
    assert!(line.contains("/sys/kernel/btf/vmlinux"), "{line}");
    assert!(line.contains("CONFIG_DEBUG_INFO_BTF"), "{line}");
}

#[test]
fn another_pid_namespace_is_served_and_told() {
    let line = load_in("pid-namespace");
    // itself alone, under its own namespace's pid 1
    assert!(line.starts_with("ok rows=1 "), "{line}");
    assert!(line.contains("other PID namespaces"), "{line}");
    let ms = line.split("me_ms=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(ms.parse::<u64>().unwrap() >= 30, "{line}");
}

#[test]
fn options_out_of_range_are_refused() {
    for builder in
        [CpuProbe::builder().switch_table_entries(0), CpuProbe::builder().max_exited(u32::MAX)]
    {
        assert_eq!(builder.load().unwrap_err().kind(), ErrorKind::InvalidOption);
    }
}

#[test]
fn preflight_passes_where_a_probe_loads() {
    let preflight = preflight();
    preflight.require().unwrap();
    let text = preflight.to_string();
    assert!(text.contains("BTF") && text.contains("capabilities"), "{text}");
    assert!(!text.contains("MISSING"), "{text}");
}
