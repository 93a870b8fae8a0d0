//! The probe passes what `ebpfmetrics` demands of every probe.

use custom_probe::SyscallProbe;
use ebpfmetrics::kit::conformance;

#[test]
fn conformance() {
    let work = || {
        for _ in 0..20_000 {
            std::hint::black_box(std::os::unix::process::parent_id());
        }
        20_000..=20_020
    };
    conformance::check(SyscallProbe::builder, work, |usage| usage.calls);
}
