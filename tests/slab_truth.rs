//! Slab allocations and frees compared with the kernel's own tracer.

use std::{
    collections::{BTreeSet, HashMap},
    thread::sleep,
    time::Duration,
};

use ebpfmetrics::{Probe, Process, SlabProbe, SlabUsage, Window, slab::SlabSnapshot};
use ebpfmetrics_suite::{
    SlabEvent, SlabTrace, Workload, poll, run_slab_command, skipped, slab_usage, wait_until_asleep,
};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
/// Processes are released within this time.
const SETTLED: Duration = Duration::from_secs(5);

fn outstanding(probe: &mut SlabProbe, pid: u32) -> u64 {
    probe.snapshot().unwrap().process(pid).unwrap().usage.outstanding_bytes.unwrap()
}

/// Events of some threads as the tracer recorded them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Traced {
    allocations: u64,
    allocated_bytes: u64,
    frees: u64,
}

fn traced(events: &[SlabEvent], window: Window, is: impl Fn(u32) -> bool) -> Traced {
    let mut sum = Traced::default();
    let in_window = |at| (window.start_ns..window.end_ns).contains(&at);
    for event in events.iter().filter(|event| is(event.tid) && in_window(event.at_ns)) {
        match event.allocated_bytes {
            Some(bytes) => {
                sum.allocations += 1;
                sum.allocated_bytes += bytes;
            }
            None => sum.frees += 1,
        }
    }
    sum
}

/// Equal except for the runs that the kernel reports as skipped.
fn assert_traced(ours: SlabUsage, truth: Traced, snapshot: &SlabSnapshot) {
    let ours = Traced {
        allocations: ours.allocations,
        allocated_bytes: ours.allocated_bytes,
        frees: ours.frees,
    };
    let skipped = skipped(snapshot);
    let context = format!("ours {ours:?}, traced {truth:?}, {:?}", snapshot.losses);
    if skipped == 0 {
        assert_eq!(ours, truth, "{context}");
    }
    let within = |ours: u64, truth: u64| (truth.saturating_sub(skipped)..=truth).contains(&ours);
    assert!(within(ours.allocations, truth.allocations), "{context}");
    assert!(within(ours.frees, truth.frees), "{context}");
    assert!(ours.allocated_bytes <= truth.allocated_bytes, "{context}");
}

/// Frees in the trace, with the allocations of the same addresses before them.
#[derive(Debug, Default)]
struct TracedFrees {
    freed_bytes: u64,
    /// Number by (freeing thread, allocating thread), where these differ.
    crossing: HashMap<(u32, u32), u64>,
    /// Bytes not freed, by allocating thread.
    outstanding: HashMap<u32, u64>,
}

/// Follows addresses from the beginning of the trace; freed bytes are those of one
/// process in the window.
fn traced_frees(events: &[SlabEvent], window: Window, freer: u32) -> TracedFrees {
    let mut objects: HashMap<u64, (u32, u64)> = HashMap::new();
    let mut sum = TracedFrees::default();
    for event in events.iter().take_while(|event| event.at_ns < window.end_ns) {
        if let Some(bytes) = event.allocated_bytes {
            objects.insert(event.address, (event.tid, bytes));
            continue;
        }
        let Some((allocator, bytes)) = objects.remove(&event.address) else { continue };
        if event.at_ns < window.start_ns {
            continue;
        }
        if event.tid == freer {
            sum.freed_bytes += bytes;
        }
        if event.tid != allocator {
            *sum.crossing.entry((event.tid, allocator)).or_default() += 1;
        }
    }
    for (allocator, bytes) in objects.into_values() {
        *sum.outstanding.entry(allocator).or_default() += bytes;
    }
    sum
}

fn close(ours: u64, truth: u64, slack: u64) -> bool {
    ours.abs_diff(truth) <= truth / 100 + slack
}

#[test]
fn counts_and_bytes_equal_those_of_the_tracer() {
    for builder in [SlabProbe::builder(), SlabProbe::builder().address_map(100_000)] {
        let trace = SlabTrace::start();
        let mut probe = builder.load().unwrap();
        let mut work = Workload::start(WORKLOAD, &["slab"]);
        wait_until_asleep(work.pid());
        let mut done = Vec::new();
        for (what, least) in
            [("pipes 500", 1500), ("sockets 300", 1200), ("hold 200", 600), ("threads 300", 3600)]
        {
            probe.reset().unwrap();
            let threads = run_slab_command(&mut work, what);
            done.push((what, least, threads, probe.snapshot().unwrap()));
        }
        let events = trace.stop();
        for (what, least, threads, snapshot) in &done {
            let ours = slab_usage(snapshot, work.pid());
            let truth = traced(&events, snapshot.window, |tid| threads.contains(&tid));
            println!("{what}: {ours:?}");
            assert!(truth.allocations >= *least, "{what}: traced {truth:?}");
            assert_traced(ours, truth, snapshot);
        }
    }
}

/// Live and exited processes and idle CPUs have every event.
#[test]
fn the_machine_adds_up_to_what_the_tracer_saw() {
    let trace = SlabTrace::start();
    let mut probe = SlabProbe::builder().load().unwrap();
    let mut work = Workload::start(WORKLOAD, &["slab"]);
    wait_until_asleep(work.pid());
    probe.reset().unwrap();
    let mut children = Workload::start(WORKLOAD, &["children", "50", "100"]);
    children.line();
    run_slab_command(&mut work, "pipes 2000");
    sleep(Duration::from_millis(500));
    let snapshot = probe.snapshot().unwrap();
    let alive = |tid: u32| std::path::Path::new(&format!("/proc/{tid}")).exists();
    let events = trace.stop();

    let ours = snapshot.sum_with_idle();
    let truth = traced(&events, snapshot.window, |_| true);
    let idle = traced(&events, snapshot.window, |tid| tid == 0);
    // Processes that ended before the reset and were released after it are in either window.
    let gone: BTreeSet<u32> = events.iter().map(|event| event.tid).filter(|t| !alive(*t)).collect();
    let late = traced(&events, snapshot.window, |tid| {
        gone.contains(&tid) && snapshot.process(tid).is_none()
    });
    let mut early = Traced::default();
    for row in snapshot.processes.iter().filter(|row| row.info.exited) {
        let truth = traced(&events, snapshot.window, |tid| tid == row.id.pid);
        early.allocations += row.usage.allocations.saturating_sub(truth.allocations);
        early.frees += row.usage.frees.saturating_sub(truth.frees);
    }
    let context = format!(
        "ours {ours:?}, traced {truth:?}, late {late:?}, early {early:?}; idle: ours {:?}, \
         traced {idle:?}; {:?}",
        snapshot.system.idle, snapshot.losses
    );
    println!("{context}");
    assert!(truth.allocations > 6000, "{context}");
    // Reading a snapshot takes allocations and time itself, at both ends.
    let near = |ours: u64, truth: u64, late: u64, early: u64| {
        let slack = truth / 100 + 500;
        ours + late + slack >= truth && ours <= truth + early + slack
    };
    let allocations = [ours.allocations, truth.allocations, late.allocations, early.allocations];
    for [ours, truth, late, early] in
        [allocations, [ours.frees, truth.frees, late.frees, early.frees]]
    {
        assert!(near(ours, truth, late, early), "{context}");
    }
    assert!(close(snapshot.system.idle.allocations, idle.allocations, 100), "{context}");
    assert!(close(snapshot.system.idle.frees, idle.frees, 500), "{context}");
    assert_eq!(ours.freed_bytes, None);
}

/// Packets: allocated while the sender runs, freed while the receiver does.
#[test]
fn frees_by_another_process_count_on_both_sides() {
    const COUNT: u64 = 1000;
    let trace = SlabTrace::start();
    let mut probe = SlabProbe::builder().address_map(200_000).load().unwrap();
    let mut work = Workload::start(WORKLOAD, &["send", &COUNT.to_string()]);
    let sender = work.pid();
    // its first line is the pid: start() has read that
    let receiver =
        probe.snapshot().unwrap().processes.into_iter().find(|row| {
            row.info.parent.is_some_and(|parent| parent.pid == sender) && !row.info.exited
        });
    let receiver = receiver.expect("the receiver").id.pid;
    wait_until_asleep(receiver);
    wait_until_asleep(sender);
    probe.reset().unwrap();
    work.tell("go");
    assert_eq!(work.line(), "arrived");
    wait_until_asleep(receiver);
    wait_until_asleep(sender);
    let snapshot = probe.snapshot().unwrap();
    let events = trace.stop();
    let (sent, received) = (slab_usage(&snapshot, sender), slab_usage(&snapshot, receiver));
    let truth = traced_frees(&events, snapshot.window, receiver);
    let by_others = |of: u32| -> u64 {
        let crossing = truth.crossing.iter().filter(|((_, allocator), _)| *allocator == of);
        crossing.map(|(_, count)| *count).sum()
    };
    let of_others = |by: u32| -> u64 {
        let crossing = truth.crossing.iter().filter(|((freer, _), _)| *freer == by);
        crossing.map(|(_, count)| *count).sum()
    };
    let context = format!(
        "sender {sender} {sent:?}, receiver {receiver} {received:?}, traced {:?} and {} bytes; {:?}",
        truth.crossing, truth.freed_bytes, snapshot.losses
    );
    println!("{context}");
    // a header and its data per packet; some headers are allocated in bulk, unseen
    assert!(truth.crossing[&(receiver, sender)] >= COUNT * 3 / 2, "{context}");
    let cross = received.cross_process_frees.unwrap();
    assert!(close(cross, of_others(receiver), 5), "{context}");
    assert!(close(sent.freed_by_others.unwrap(), by_others(sender), 5), "{context}");
    assert!(close(received.freed_bytes.unwrap(), truth.freed_bytes, 5000), "{context}");
    // allocations minus frees would be far off
    assert!(sent.allocated_bytes > 2 * sent.freed_bytes.unwrap(), "{context}");
    let held = snapshot.process(sender).unwrap().usage.outstanding_bytes.unwrap();
    assert!(held < sent.allocated_bytes / 5, "{held} outstanding; {context}");
}

#[test]
fn what_is_held_is_outstanding_until_it_is_freed() {
    let trace = SlabTrace::start();
    let mut probe = SlabProbe::builder().address_map(200_000).load().unwrap();
    let mut work = Workload::start(WORKLOAD, &["slab"]);
    wait_until_asleep(work.pid());
    let before = outstanding(&mut probe, work.pid());
    run_slab_command(&mut work, "hold 400");
    let snapshot = probe.snapshot().unwrap();
    let events = trace.stop();
    let held = snapshot.process(work.pid()).unwrap().usage.outstanding_bytes.unwrap();
    let truth = traced_frees(&events, snapshot.window, 0).outstanding[&work.pid()];
    let context = format!("{before} before, {held} held, traced {truth}, {:?}", snapshot.losses);
    println!("{context}");
    // a pipe has an inode, a dentry, two files, and its own structures
    assert!(held - before > 400 * 1000, "{context}");
    assert!(close(held, truth, 2000), "{context}");
    run_slab_command(&mut work, "drop");
    let limit = before + (held - before) / 20;
    let freed = poll(SETTLED, || (outstanding(&mut probe, work.pid()) < limit).then_some(()));
    assert!(freed.is_some(), "{} are left; {context}", outstanding(&mut probe, work.pid()));
}

/// A snapshot once processes that have exited are released. A row may say that its process has
/// exited before: until the release it lacks what the kernel frees after the exit hook.
fn after_release(probe: &mut SlabProbe) -> SlabSnapshot {
    sleep(Duration::from_millis(500));
    probe.snapshot().unwrap()
}

/// Whether this machine hides process 1, and with it some events of others, from eBPF.
fn hides_events(probe: &SlabProbe) -> bool {
    probe.health().unwrap().degraded.iter().any(|it| it.feature == "process 1")
}

#[test]
fn a_process_that_ends_leaves_its_final_record() {
    for options in [SlabProbe::builder(), SlabProbe::builder().address_map(100_000)] {
        let trace = SlabTrace::start();
        let mut probe = options.load().unwrap();
        let mut work = Workload::start(WORKLOAD, &["slab"]);
        run_slab_command(&mut work, "hold 200");
        let pid = work.pid();
        let alive = slab_usage(&probe.snapshot().unwrap(), pid);
        work.kill();
        let exited = poll(SETTLED, || {
            let snapshot = probe.snapshot().unwrap();
            snapshot.process(pid).unwrap().info.exited.then_some(())
        });
        exited.expect("the end of the process");
        let last = after_release(&mut probe);
        let events = trace.stop();
        let (row, truth) = (slab_usage(&last, pid), traced(&events, last.window, |tid| tid == pid));
        let settled = last.losses.get("exit_record_missing") == Some(0);
        let context = format!("{alive:?}, at the end {row:?}, traced {truth:?}, {:?}", last.losses);
        println!("{context}");
        assert!(row.allocations >= alive.allocations && row.frees > alive.frees + 200, "{context}");
        if settled {
            assert_traced(row, truth, &last);
        } else {
            assert!(hides_events(&probe), "{context}");
        }
        assert!(!last.process(pid).unwrap().info.kernel_thread, "{context}");
        // reported in one window
        probe.reset().unwrap();
        assert!(probe.snapshot().unwrap().process(pid).is_none());
    }
}

#[test]
fn a_reused_pid_gives_two_rows() {
    let trace = SlabTrace::start();
    let mut probe = SlabProbe::builder().address_map(100_000).load().unwrap();
    let mut work = Workload::start_without_waiting(WORKLOAD, &["reuse-pid", "5", "5"]);
    let line = work.line();
    let pid: u32 = line.split(' ').next().unwrap().parse().unwrap();
    let rows = |snapshot: &SlabSnapshot| -> Vec<Process<SlabUsage>> {
        snapshot.processes.iter().filter(|row| row.id.pid == pid).cloned().collect()
    };
    let ended = poll(SETTLED, || {
        let rows = rows(&probe.snapshot().unwrap());
        (rows.len() == 2 && rows.iter().all(|row| row.info.exited)).then_some(())
    });
    ended.expect("two processes that ended");
    let last = after_release(&mut probe);
    let rows = rows(&last);
    let events = trace.stop();
    assert!(rows[0].id < rows[1].id, "{rows:?}");
    assert!(rows.iter().all(|row| row.usage.frees > 0), "{rows:?}");
    if last.losses.get("exit_record_missing") == Some(0) {
        let both = rows[0].usage + rows[1].usage;
        assert_traced(both, traced(&events, last.window, |tid| tid == pid), &last);
    }
}

#[test]
fn processes_that_share_a_place_in_the_table_are_told_apart() {
    let trace = SlabTrace::start();
    // one place and, beside it, room for a quarter as many as this
    let mut probe = SlabProbe::builder().table_entries(128).load().unwrap();
    let mut works: Vec<_> = (0..3).map(|_| Workload::start(WORKLOAD, &["slab"])).collect();
    let mut children = Workload::start(WORKLOAD, &["children", "120", "20"]);
    children.line();
    works.extend((0..3).map(|_| Workload::start(WORKLOAD, &["slab"])));
    for work in &works {
        wait_until_asleep(work.pid());
    }
    probe.reset().unwrap();
    for (work, count) in works.iter_mut().zip(1..) {
        run_slab_command(work, &format!("pipes {}", count * 20));
    }
    let snapshot = probe.snapshot().unwrap();
    let events = trace.stop();
    // others of the machine may have found no room
    for work in &works {
        let truth = traced(&events, snapshot.window, |tid| tid == work.pid());
        let row = slab_usage(&snapshot, work.pid());
        if snapshot.losses.get("process_table_full") == Some(0) {
            assert_traced(row, truth, &snapshot);
        } else {
            assert!(row.allocations <= truth.allocations, "{row:?}, {truth:?}");
        }
    }
}

#[test]
fn windows_touch_and_counters_start_again() {
    let trace = SlabTrace::start();
    let mut probe = SlabProbe::builder().load().unwrap();
    let mut work = Workload::start(WORKLOAD, &["slab"]);
    wait_until_asleep(work.pid());
    let first = probe.reset().unwrap();
    let (mut end, mut sum, mut lost) = (first.window.end_ns, SlabUsage::default(), 0);
    work.tell("pipes 4000");
    for _ in 0..8 {
        sleep(Duration::from_millis(3));
        let before = slab_usage(&probe.snapshot().unwrap(), work.pid());
        let snapshot = probe.reset().unwrap();
        assert_eq!(snapshot.window.start_ns, end);
        end = snapshot.window.end_ns;
        let row = slab_usage(&snapshot, work.pid());
        assert!(row.allocations >= before.allocations && row.frees >= before.frees);
        sum += row;
        lost += skipped(&snapshot);
    }
    assert_eq!(work.line(), "done");
    wait_until_asleep(work.pid());
    let last = probe.reset().unwrap();
    sum += slab_usage(&last, work.pid());
    let events = trace.stop();
    let window = Window { start_ns: first.window.end_ns, end_ns: last.window.end_ns };
    let truth = traced(&events, window, |tid| tid == work.pid());
    lost += skipped(&last) + 100;
    assert!(
        (truth.allocations.saturating_sub(lost)..=truth.allocations).contains(&sum.allocations),
        "{sum:?}, traced {truth:?}, {:?}",
        last.losses
    );
    assert_eq!(slab_usage(&probe.reset().unwrap(), work.pid()).allocations, 0);
}
