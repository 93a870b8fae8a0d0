//! The probe passes what `ebpfmetrics` asks of everybody's.

use custom_probe::SyscallProbe;
use ebpfmetrics::kit::conformance;

#[test]
fn conformance() {
    let load = |kernel: &_| SyscallProbe::builder().load_on(kernel);
    let work = || {
        for _ in 0..20_000 {
            std::hint::black_box(std::os::unix::process::parent_id());
        }
        20_000..=20_020
    };
    conformance::check(load, work, |usage| usage.calls);
}
