//! A probe of another crate in one walk with those of the library, in a tuple and in a set.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use custom_probe::{SyscallProbe, SyscallProcess, SyscallSnapshot};
use ebpfmetrics::{
    AnyProbe, CpuProbe, CpuProcess, Joined, Kernel, MemProbe, Probe as _, Snapshot as _,
};
use support::Caller;

#[test]
fn a_set_holds_it_as_any_other() {
    let kernel = Kernel::read().unwrap();
    let cpu = CpuProbe::builder().load_on(&kernel).unwrap();
    let calls = SyscallProbe::builder().load_on(&kernel).unwrap();
    let mut joined = Joined::new(vec![AnyProbe::new(cpu), AnyProbe::new(calls)]).unwrap();
    let mut caller = Caller::start();
    caller.work(1, 5000, 50);
    let second = joined.reset().unwrap();
    let row = second.processes().find(|row| row.id.pid == caller.pid()).unwrap();
    let calls = row.rows.get::<SyscallProcess>().unwrap();
    assert!(calls.usage.calls >= 5050 && calls.usage.errors >= 50, "{calls:?}");
    assert_eq!(row.rows.get::<CpuProcess>().unwrap().info, calls.info);
    let part = second.part::<SyscallSnapshot>().unwrap();
    assert_eq!((part.window, part.process(caller.pid())), (second.window, Some(calls)));
    let [_, calls] = <[AnyProbe; 2]>::try_from(joined.into_inner()).unwrap();
    assert_eq!(calls.name(), "syscalls");
    assert!(calls.downcast::<SyscallProbe>().is_ok());
}

#[test]
fn rows_stand_side_by_side() {
    let kernel = Kernel::read().unwrap();
    let cpu = CpuProbe::builder().load_on(&kernel).unwrap();
    let memory = MemProbe::builder().load_on(&kernel).unwrap();
    let calls = SyscallProbe::builder().load_on(&kernel).unwrap();
    let mut joined = Joined::new((cpu, calls, memory)).unwrap();
    let mut caller = Caller::start();
    caller.work(1, 5000, 50);

    let second = joined.reset().unwrap();
    let row = second.processes().find(|row| row.id.pid == caller.pid()).unwrap();
    let (cpu, calls, memory) = row.rows;
    let (cpu, calls, memory) = (cpu.unwrap(), calls.unwrap(), memory.unwrap());
    assert_eq!((cpu.id, cpu.info), (calls.id, calls.info));
    assert_eq!((memory.id, memory.info), (calls.id, calls.info));
    assert!(calls.usage.calls >= 5050, "{calls:?}");
    assert!(calls.usage.errors >= 50, "{calls:?}");
    assert!(!cpu.usage.cpu_time.is_zero() && memory.usage.resident_bytes > Some(0));
    assert_eq!(second.parts.1.window, second.window);
    assert_eq!(second.losses().get("process_table_full"), Some(0));

    // its end is told by all of them
    let pid = caller.pid();
    caller.end();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let snapshot = joined.snapshot().unwrap();
        let row = snapshot.processes().find(|row| row.id.pid == pid).unwrap();
        let ended = [
            row.rows.0.is_some_and(|row| row.info.exited),
            row.rows.1.is_some_and(|row| row.info.exited),
            row.rows.2.is_some_and(|row| row.info.exited),
        ];
        if ended == [true; 3] {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{ended:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
