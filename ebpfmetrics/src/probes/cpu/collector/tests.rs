use bytemuck::Zeroable as _;
use proptest::prelude::*;

use super::{
    super::{counters::split, threads::KnownThread},
    *,
};
use crate::{
    collect::testing::head,
    process::{Comm, ThreadId},
    record::{CpuTotalsRecord, ProcessEndedRecord, RecordHead},
};

const WALK: WalkTimes = WalkTimes {
    window_start_ns: 0,
    monotonic_ns: 10_000,
    boottime_ns: 10_000,
    scheduler_offset_ns: None,
};

fn cpu() -> Cpu {
    Cpu {
        object: None,
        accounting: CpuAccounting::Ledger,
        list_threads: true,
        per_cpu_offsets: [0; 4],
        slots: 1,
        has_wait: true,
        online_cpus: 2,
        cpus: Cpus::default(),
        threads: Threads::default(),
        first_walk_ns: None,
    }
}

fn record(own: u64, dead: u64) -> CpuTaskRecord {
    let section = section_number::CPU as u16;
    let mut record = CpuTaskRecord {
        head: head::<CpuTaskRecord>(section, cpu_kind::TASK),
        ..CpuTaskRecord::zeroed()
    };
    (record.own.sum_exec_ns, record.dead.sum_exec_ns) = (own, dead);
    record
}

fn task(pid: u32, tid: u32) -> Task {
    Task {
        process: ProcessId { pid, start_time_ns: 1 },
        index: 0,
        is_leader: pid == tid,
        thread: ThreadId { tid, start_time_ns: 1 },
        address: tid.into(),
        comm: Comm::default(),
        cgroup_id: 1,
    }
}

fn take(
    cpu: &mut Cpu,
    task: &Task,
    record: &CpuTaskRecord,
    reading: &mut Reading<Cpu>,
) -> Result<()> {
    let bytes = bytemuck::bytes_of(record);
    cpu.task_record(task, Record { kind: record.head.kind, bytes }, &WALK, reading)
}

#[test]
fn processes_have_sums_and_threads_their_own() {
    let mut cpu = cpu();
    let mut reading = Reading::default();
    take(&mut cpu, &task(10, 10), &record(5, 100), &mut reading).unwrap();
    take(&mut cpu, &task(10, 12), &record(20, 100), &mut reading).unwrap();
    assert_eq!(reading.counters.ledger_ns, 125);
    assert!(!reading.gauges.is_single);
    cpu.threads.end_walk(std::iter::empty());
    let threads: Vec<_> =
        cpu.threads.iter().map(|it| (it.id.tid, it.in_window().ledger_ns)).collect();
    assert_eq!(threads, [(10, 5), (12, 20)]);
}

#[test]
fn every_counter_is_its_own() {
    let totals = |factor: u64| CpuTotalsRecord {
        sum_exec_ns: factor,
        charged_ns: 8 * factor,
        user_ns: 2 * factor,
        system_ns: 3 * factor,
        voluntary_switches: 4 * factor,
        involuntary_switches: 5 * factor,
        run_queue_wait_ns: 6 * factor,
        migrations: 7 * factor,
    };
    let record = CpuTaskRecord { own: totals(1), dead: totals(10), ..record(0, 0) };
    let mut reading = Reading::default();
    take(&mut cpu(), &task(10, 10), &record, &mut reading).unwrap();
    let expected = CpuCounters {
        ledger_ns: 11,
        charged_ns: 80,
        user_ns: 22,
        system_ns: 33,
        voluntary_switches: 44,
        involuntary_switches: 55,
        run_queue_wait_ns: 66,
        migrations: 77,
    };
    assert_eq!(reading.counters, expected);
}

#[test]
fn a_running_task_gets_the_time_since_the_last_update() {
    let mut record = record(50, 0);
    record.flags = cpu_task_flags::RUNNING | cpu_task_flags::SWITCHED_IN;
    (record.running_raw_ns, record.switched_in_ns) = (1_000_300, 40);
    let counters = |offset| {
        let walk = WalkTimes { scheduler_offset_ns: offset, ..WALK };
        CpuCounters::of_task(&record, &walk)
    };
    assert_eq!(counters(Some(1_000_000)).ledger_ns, 350);
    assert_eq!(counters(Some(1_000_000)).charged_ns, 310);
    assert_eq!(counters(None).ledger_ns, 50);
    // a start after now is a race of 0.1 us, not 584 years
    assert_eq!(counters(Some(1_000_400)).ledger_ns, 50);
}

#[test]
fn what_a_task_ran_after_the_walk_began_is_of_the_next_window() {
    let walk = WalkTimes { scheduler_offset_ns: Some(1_000_000), ..WALK };
    let mut record = record(500, 0);
    record.flags = cpu_task_flags::RUNNING;
    record.read_at_ns = WALK.monotonic_ns + 200;
    (record.running_raw_ns, record.arrived_raw_ns) = (1_000_300, 1_000_900);
    assert_eq!(CpuCounters::of_task(&record, &walk).ledger_ns, 600);
    // it was switched in after that
    record.arrived_raw_ns = 1_000_150;
    assert_eq!(CpuCounters::of_task(&record, &walk).ledger_ns, 650);
    // it waits since before
    record.flags = cpu_task_flags::WAITING;
    record.queued_raw_ns = 1_000_700;
    assert_eq!(CpuCounters::of_task(&record, &walk).run_queue_wait_ns, 500);
    record.queued_raw_ns = 1_000_100;
    assert_eq!(CpuCounters::of_task(&record, &walk).run_queue_wait_ns, 0);
}

#[test]
fn records_of_unexpected_kind_and_size_are_errors() {
    let mut reading = Reading::default();
    let mut unknown = record(0, 0);
    unknown.head.kind = 9;
    assert!(take(&mut cpu(), &task(1, 1), &unknown, &mut reading).is_err());
    let short = head::<RecordHead>(section_number::CPU as u16, cpu_kind::TASK);
    let short = Record { kind: short.kind, bytes: bytemuck::bytes_of(&short) };
    assert!(cpu().task_record(&task(1, 1), short, &WALK, &mut reading).is_err());
    assert!(cpu().system_record(2, short.bytes, &WALK).is_err());
}

#[test]
fn user_and_system_time_make_up_the_cpu_time() {
    assert_eq!(split(1000, (0, 0), (0, 0)), (1000, 0));
    assert_eq!(split(1000, (0, 4), (0, 0)), (0, 1000));
    assert_eq!(split(1000, (3, 1), (0, 0)), (750, 250));
    // samples moved towards user: system stays where it was
    assert_eq!(split(1100, (30, 1), (750, 250)), (850, 250));
    assert_eq!(split(1100, (1, 30), (750, 250)), (750, 350));
    assert_eq!(split(900, (3, 1), (750, 250)), (750, 250));
    let counters = |ledger_ns, user_ns, system_ns| CpuCounters {
        ledger_ns,
        user_ns,
        system_ns,
        ..CpuCounters::default()
    };
    let none = CpuCounters::default();
    let longest = Longest { running_ns: u64::MAX, waiting_ns: u64::MAX };
    let next = advance(&counters(1000, 750, 250), &counters(1100, 1, 30), &none, longest);
    assert_eq!(next, counters(1100, 750, 350));
}

/// The bound on CPU time was applied to waits: 16 threads on 2 CPUs wait 14 windows each
/// window.
#[test]
fn many_threads_wait_longer_than_the_cpus_have_time() {
    let counters =
        CpuCounters { ledger_ns: 30_000, run_queue_wait_ns: 140_000, ..CpuCounters::default() };
    let now = Reading { counters, gauges: CpuGauges { threads: 16, is_single: false } };
    let none = CpuCounters::default();
    let progress =
        Progress { start_time_ns: 0, last: &none, baseline: &none, is_new: false, walk: &WALK };
    let next = cpu().advance(&progress, &now);
    assert_eq!((next.ledger_ns, next.run_queue_wait_ns), (20_000, 140_000));
}

/// The sum of the split records of several CPUs lost time when the proportion changed.
#[test]
fn the_overflow_has_user_and_system_time_of_all_its_cpu_time() {
    let grown = CpuCounters { ledger_ns: 100, user_ns: 1, system_ns: 3, ..CpuCounters::default() };
    let complete = Cpu::complete_overflow(&grown);
    assert_eq!((complete.user_ns, complete.system_ns, complete.ledger_ns), (25, 75, 100));
}

#[test]
fn a_thread_that_becomes_the_leader_by_exec_keeps_its_baseline() {
    let mut threads = Threads::default();
    let counters = |ledger_ns| CpuCounters { ledger_ns, ..CpuCounters::default() };
    let thread = Task { address: 7, ..task(10, 12) };
    threads.begin_walk();
    threads.add(&task(10, 10), &counters(50), None, &WALK);
    threads.add(&thread, &counters(300), None, &WALK);
    threads.end_walk(std::iter::empty());
    threads.rebase();
    threads.begin_walk();
    threads.add(&Task { address: 7, ..task(10, 10) }, &counters(310), None, &WALK);
    threads.end_walk(std::iter::empty());
    let now: Vec<_> = threads.iter().map(|it| (it.id.tid, it.in_window().ledger_ns)).collect();
    assert_eq!(now, [(10, 10)]);
}

/// The estimate for a running thread may be some ns ahead, and is not taken back: nor in its
/// process.
#[test]
fn threads_never_sum_to_more_than_their_process() {
    let mut cpu = cpu();
    let mut last = 0;
    for (one, other) in [(50, 300), (47, 310), (60, 309)] {
        cpu.threads.begin_walk();
        let mut reading = Reading::default();
        take(&mut cpu, &task(10, 10), &record(one, 0), &mut reading).unwrap();
        take(&mut cpu, &task(10, 12), &record(other, 0), &mut reading).unwrap();
        cpu.threads.end_walk(std::iter::empty());
        let threads: u64 = cpu.threads.iter().map(|it| it.in_window().ledger_ns).sum();
        last = reading.counters.ledger_ns.max(last);
        assert_eq!(threads, last);
    }
}

/// A thread that was not seen before had no bound.
#[test]
fn a_new_thread_has_no_more_time_than_its_age() {
    let mut threads = Threads::default();
    let mut new = task(10, 12);
    new.thread.start_time_ns = WALK.boottime_ns - 100;
    for (window_start_ns, expected) in [(0, 100), (WALK.monotonic_ns, 0)] {
        let walk = WalkTimes { window_start_ns, ..WALK };
        threads.begin_walk();
        threads.add(&new, &CpuCounters { ledger_ns: 150, ..CpuCounters::default() }, None, &walk);
        threads.end_walk(std::iter::empty());
        let now: Vec<_> = threads.iter().map(|it| it.in_window().ledger_ns).collect();
        assert_eq!(now, [expected]);
        threads.rebase();
    }
}

/// A walk of threads of one process with so many ns each, of which others released so many.
/// Returns the growth of the threads in the window, and of the process.
fn walk_threads(cpu: &mut Cpu, walk: u64, threads: &[(u32, u64)], dead_ns: u64) -> u64 {
    let now_ns = 10_000 + walk * 100;
    let walk = WalkTimes {
        window_start_ns: now_ns - 100,
        monotonic_ns: now_ns,
        boottime_ns: now_ns,
        ..WALK
    };
    cpu.threads.begin_walk();
    let mut reading: Reading<Cpu> = Reading::default();
    for &(tid, ns) in threads {
        let mut record = record(ns, dead_ns);
        record.own.user_ns = ns;
        let task = task(10, tid);
        cpu.task_record(
            &task,
            Record { kind: cpu_kind::TASK as u16, bytes: bytemuck::bytes_of(&record) },
            &walk,
            &mut reading,
        )
        .unwrap();
    }
    let id = ProcessId { pid: 10, start_time_ns: 1 };
    cpu.threads.end_walk([(id, &mut reading.counters.ledger_ns, 200)].into_iter());
    reading.counters.ledger_ns
}

fn growth(cpu: &Cpu) -> u64 {
    cpu.threads
        .iter()
        .map(KnownThread::in_window)
        .map(|it| {
            assert_eq!(it.user_ns, it.ledger_ns);
            it.ledger_ns
        })
        .sum()
}

/// Three threads were read late, when each had run for two windows. Two CPUs do not have that.
#[test]
fn threads_have_no_more_time_together_than_the_cpus() {
    let mut cpu = cpu();
    let mut shown = Vec::new();
    for walk in 0..5 {
        let ns = if walk > 0 { 700 } else { 500 };
        let process = walk_threads(&mut cpu, walk, &[(10, ns), (11, ns), (12, ns)], 0);
        shown.push((growth(&cpu), process));
        cpu.threads.rebase();
    }
    // the life before the first window, then 600 within the capacity
    assert_eq!(shown, [(1500, 1500), (200, 1700), (200, 1900), (100, 2000), (100, 2100)]);
}

/// A thread is released between the record of its leader and its own: the process loses what
/// it had, until the next walk.
#[test]
fn threads_do_not_exceed_a_process_whose_thread_is_being_released() {
    let mut cpu = cpu();
    walk_threads(&mut cpu, 0, &[(10, 500), (11, 80)], 0);
    cpu.threads.rebase();
    // 580 were reported, and the leader has 30 more
    assert_eq!(walk_threads(&mut cpu, 1, &[(10, 530)], 0), 530);
    assert_eq!(growth(&cpu), 0);
    cpu.threads.rebase();
    assert_eq!(walk_threads(&mut cpu, 2, &[(10, 540)], 80), 620);
    assert_eq!(growth(&cpu), 40);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// A thread is read late, by a reader that is preempted: it has run, waited and slept
    /// since the window ended. In no window has it more time than that is long, no counter
    /// goes back, user and system time make up the CPU time, and nothing is lost.
    #[test]
    fn no_thread_exceeds_its_window(
        steps in prop::collection::vec((0_u64..3, 1_u64..500, any::<bool>(), 0_u64..4000), 1..200),
    ) {
        const OFFSET: u64 = 77;
        let cpu = cpu();
        let (mut ran, mut waited, mut now_ns) = (0, 0, 1_000_000);
        let (mut state_since, mut state) = (now_ns, 1);
        let mut window_start_ns = now_ns;
        let (mut last, mut baseline) = (CpuCounters::default(), CpuCounters::default());
        let (mut reported, mut waits_reported) = (0, 0);
        let mut is_new = true;
        let read = |walk_ns: u64, window_start_ns: u64, read_at_ns: u64, ran: u64, waited: u64, state: u64, state_since: u64| {
            let mut record = record(ran, 0);
            record.own.run_queue_wait_ns = waited;
            (record.own.user_ns, record.own.system_ns) = (ran / 3, ran / 7);
            record.read_at_ns = read_at_ns;
            let raw = read_at_ns - state_since + OFFSET;
            match state {
                0 => {
                    record.flags = cpu_task_flags::RUNNING;
                    (record.running_raw_ns, record.arrived_raw_ns) = (raw, raw);
                }
                1 => {}
                _ => {
                    record.flags = cpu_task_flags::WAITING;
                    record.queued_raw_ns = raw;
                }
            }
            let walk = WalkTimes {
                window_start_ns,
                monotonic_ns: walk_ns,
                boottime_ns: walk_ns,
                scheduler_offset_ns: Some(OFFSET),
            };
            (CpuCounters::of_task(&record, &walk), walk)
        };
        let end = [(1, 1, true, 0), (1, 1_000_000, true, 0), (1, 1_000_000, true, 0)];
        for (next, duration, is_read, late_ns) in steps.into_iter().chain(end) {
            // the state up to here
            now_ns += duration;
            let walk_ns = now_ns;
            let spend = |state: u64, ns: u64, ran: &mut u64, waited: &mut u64| match state {
                0 => *ran += ns,
                1 => {}
                _ => *waited += ns,
            };
            spend(state, now_ns - state_since, &mut ran, &mut waited);
            (state, state_since) = (next, now_ns);
            if !is_read {
                continue;
            }
            // half of the delay in this state, then in another
            now_ns += late_ns / 2;
            spend(state, now_ns - state_since, &mut ran, &mut waited);
            (state, state_since) = (late_ns % 3, now_ns);
            let read_at_ns = now_ns + late_ns / 2;
            let (counters, walk) = read(walk_ns, window_start_ns, read_at_ns, ran, waited, state, state_since);
            spend(state, read_at_ns - state_since, &mut ran, &mut waited);
            (now_ns, state_since) = (read_at_ns, read_at_ns);
            let progress = Progress { start_time_ns: 1_000_000, last: &last, baseline: &baseline, is_new, walk: &walk };
            is_new = false;
            let gauges = CpuGauges { threads: 1, is_single: true };
            let next = cpu.advance(&progress, &Reading { counters, gauges });
            let window = counters::subtract(&next, &baseline);
            let length = walk_ns - window_start_ns;
            prop_assert!(window.ledger_ns <= length, "ran {} in {length}", window.ledger_ns);
            prop_assert!(window.run_queue_wait_ns <= length, "waited {} in {length}", window.run_queue_wait_ns);
            prop_assert_eq!(next.user_ns + next.system_ns, next.ledger_ns);
            prop_assert!(next.user_ns >= last.user_ns && next.system_ns >= last.system_ns);
            prop_assert!(next.ledger_ns >= last.ledger_ns && next.ledger_ns <= ran);
            last = next;
            if late_ns % 2 == 0 {
                reported += window.ledger_ns;
                waits_reported += window.run_queue_wait_ns;
                (baseline, window_start_ns) = (last, walk_ns);
            }
        }
        prop_assert_eq!((reported, waits_reported), (ran, waited));
    }
}

#[test]
fn a_time_that_was_divided_differently_before_is_reported() {
    let of = |user_ns, system_ns, ledger_ns| CpuCounters {
        ledger_ns,
        user_ns,
        system_ns,
        ..CpuCounters::default()
    };
    let longest = |ns| Longest { running_ns: ns, waiting_ns: ns };
    // all in user mode so far; by the final record most was in the kernel
    let (last, all) = (of(80, 0, 80), of(10, 90, 100));
    let next = advance(&last, &all, &CpuCounters::default(), longest(1000));
    assert_eq!(next, of(80, 20, 100));
    assert!(Cpu::is_reported(&next, &all));
    let bounded = advance(&last, &all, &CpuCounters::default(), longest(90));
    assert!(!Cpu::is_reported(&bounded, &all));
}

#[test]
fn an_ended_process_has_what_unseen_switches_missed() {
    let cpu = Cpu { first_walk_ns: Some(100), ..cpu() };
    let mut record = ProcessEndedRecord::zeroed();
    (record.cpu.totals.sum_exec_ns, record.cpu.totals.charged_ns) = (50, 20);
    let charged_ns = |start_time_ns| {
        let id = ProcessId { pid: 1, start_time_ns };
        let ended = Ended { id, record: &record, settled: None };
        cpu.ended(&ended).unwrap().counters.charged_ns
    };
    // the switches before loading were not to be seen
    assert_eq!((charged_ns(99), charged_ns(101)), (20, 50));
}
