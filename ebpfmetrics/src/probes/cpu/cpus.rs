//! The CPUs of the machine from one walk to the next.

use std::time::Duration;

use super::CpuTime;
use crate::{
    collect::collector::WalkTimes,
    kernel::OnlineCpus,
    record::{CpuCpuRecord, cpu_cpu_flags},
};

/// The CPUs by number.
#[derive(Debug, Default)]
pub(super) struct Cpus {
    known: Vec<KnownCpu>,
    /// Of the walk that is under way.
    walked: Vec<CpuReading>,
    window_ns: u64,
}

/// A CPU with its counters since boot, never taken back.
#[derive(Clone, Copy, Debug)]
struct KnownCpu {
    last: CpuReading,
    baseline: CpuReading,
    /// As of the last walk. Without a CPU no time passes on it.
    is_online: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CpuReading {
    cpu: u32,
    idle_ns: Option<u64>,
    interrupted_ns: u64,
    by_tick: Option<ByTick>,
}

/// What the kernel adds up at timer ticks, as in `/proc/stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ByTick {
    irq_ns: u64,
    softirq_ns: u64,
    steal_ns: u64,
    guest_ns: u64,
}

impl ByTick {
    fn zip(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            irq_ns: f(self.irq_ns, other.irq_ns),
            softirq_ns: f(self.softirq_ns, other.softirq_ns),
            steal_ns: f(self.steal_ns, other.steal_ns),
            guest_ns: f(self.guest_ns, other.guest_ns),
        }
    }
}

impl CpuReading {
    fn new(record: &CpuCpuRecord, walk: &WalkTimes) -> Self {
        let has = |flag| record.flags & flag != 0;
        let idle_ns = match walk.scheduler_offset_ns {
            _ if !has(cpu_cpu_flags::HAS_IDLE) => None,
            _ if !has(cpu_cpu_flags::IDLE_LACKS_CLOCK_OFFSET) => Some(record.idle_ns),
            // Without the offset, this CPU's idle time shows once it is idle again.
            offset => offset.map(|offset| record.idle_ns.wrapping_add(offset)),
        };
        let idle_ns = match has(cpu_cpu_flags::IDLE_HOLDS_INTERRUPTED) {
            true => idle_ns.map(|ns| ns.wrapping_sub(record.interrupted_ns)),
            false => idle_ns,
        };
        let by_tick = has(cpu_cpu_flags::HAS_TICKS).then_some(ByTick {
            irq_ns: record.irq_ns,
            softirq_ns: record.softirq_ns,
            steal_ns: record.steal_ns,
            guest_ns: record.guest_ns,
        });
        Self { cpu: record.cpu, idle_ns, interrupted_ns: record.interrupted_ns, by_tick }
    }

    fn max(self, now: Self) -> Self {
        Self {
            cpu: self.cpu,
            // absent while a CPU was just switching
            idle_ns: self.idle_ns.max(now.idle_ns),
            interrupted_ns: self.interrupted_ns.max(now.interrupted_ns),
            by_tick: match (self.by_tick, now.by_tick) {
                (Some(before), Some(now)) => Some(before.zip(now, u64::max)),
                (before, now) => now.or(before),
            },
        }
    }
}

impl KnownCpu {
    /// Leaves the time since an earlier reading out of the window.
    fn skip_since(&mut self, before: CpuReading) {
        let skip = |baseline: u64, now: u64, before: u64| baseline + now.saturating_sub(before);
        let idle = self.baseline.idle_ns.zip(self.last.idle_ns).zip(before.idle_ns);
        self.baseline.idle_ns = idle.map_or(self.last.idle_ns, |((baseline, now), before)| {
            Some(skip(baseline, now, before))
        });
        self.baseline.interrupted_ns =
            skip(self.baseline.interrupted_ns, self.last.interrupted_ns, before.interrupted_ns);
        let by_tick = self.baseline.by_tick.zip(self.last.by_tick).zip(before.by_tick);
        self.baseline.by_tick = by_tick.map_or(self.last.by_tick, |((baseline, now), before)| {
            Some(baseline.zip(now.zip(before, u64::saturating_sub), |start, gap| start + gap))
        });
    }

    /// A tick may add more than a short window has room for: the rest is of later windows.
    fn by_tick(&self, window_ns: u64) -> Option<ByTick> {
        let (now, before) = self.last.by_tick.zip(self.baseline.by_tick)?;
        Some(now.zip(before, |now, before| now.saturating_sub(before).min(window_ns)))
    }

    fn in_window(&self, window_ns: u64) -> CpuTime {
        let ns = |now: u64, before: u64| Duration::from_nanos(now.saturating_sub(before));
        let by_tick = self.by_tick(window_ns);
        let tick = |ns: fn(&ByTick) -> u64| by_tick.map(|it| Duration::from_nanos(ns(&it)));
        CpuTime {
            cpu: self.last.cpu,
            idle: self.last.idle_ns.zip(self.baseline.idle_ns).map(|(now, before)| ns(now, before)),
            interrupted: ns(self.last.interrupted_ns, self.baseline.interrupted_ns),
            irq: tick(|it| it.irq_ns),
            softirq: tick(|it| it.softirq_ns),
            steal: tick(|it| it.steal_ns),
            guest: tick(|it| it.guest_ns),
        }
    }

    fn rebase(&mut self, window_ns: u64) {
        let reported = self.by_tick(window_ns);
        let baseline = self.baseline.by_tick.zip(reported);
        self.baseline = CpuReading {
            by_tick: baseline
                .map(|(before, reported)| before.zip(reported, |before, shown| before + shown))
                .or(self.last.by_tick),
            ..self.last
        };
    }
}

impl Cpus {
    pub(super) fn begin_walk(&mut self) {
        self.walked.clear();
    }

    pub(super) fn walked(&mut self, record: &CpuCpuRecord, walk: &WalkTimes) {
        self.walked.push(CpuReading::new(record, walk));
    }

    /// Takes in the readings of a walk: CPUs come and go.
    pub(super) fn end_walk(&mut self, online: &OnlineCpus, walk: &WalkTimes) {
        self.window_ns = walk.monotonic_ns.saturating_sub(walk.window_start_ns);
        for now in std::mem::take(&mut self.walked) {
            self.add(now, online.contains(now.cpu));
        }
    }

    fn add(&mut self, now: CpuReading, is_online: bool) {
        match self.known.binary_search_by_key(&now.cpu, |known| known.last.cpu) {
            Ok(index) => {
                let known = &mut self.known[index];
                let before = known.last;
                known.last = before.max(now);
                if !is_online || !known.is_online {
                    known.skip_since(before);
                }
                known.is_online = is_online;
            }
            Err(index) if is_online => {
                self.known.insert(index, KnownCpu { last: now, baseline: now, is_online });
            }
            Err(_) => {}
        }
    }

    pub(super) fn has_idle(&self) -> bool {
        self.all(|cpu| cpu.last.idle_ns.is_some())
    }

    pub(super) fn has_ticks(&self) -> bool {
        self.all(|cpu| cpu.last.by_tick.is_some())
    }

    fn all(&self, has: impl Fn(&KnownCpu) -> bool) -> bool {
        !self.known.is_empty() && self.known.iter().all(has)
    }

    pub(super) fn in_window(&self) -> Vec<CpuTime> {
        self.known.iter().map(|cpu| cpu.in_window(self.window_ns)).collect()
    }

    pub(super) fn rebase(&mut self) {
        self.known.retain(|cpu| cpu.is_online);
        self.known.iter_mut().for_each(|cpu| cpu.rebase(self.window_ns));
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    const WALK: WalkTimes = WalkTimes {
        window_start_ns: 0,
        monotonic_ns: 10_000,
        boottime_ns: 10_000,
        scheduler_offset_ns: None,
    };

    #[test]
    fn idle_time_of_a_busy_cpu_needs_the_offset() {
        let record = |flags| CpuCpuRecord {
            cpu: 3,
            flags,
            idle_ns: 70,
            interrupted_ns: 9,
            ..CpuCpuRecord::zeroed()
        };
        let idle = |flags, scheduler_offset_ns| {
            let walk = WalkTimes { scheduler_offset_ns, ..WALK };
            let reading = CpuReading::new(&record(flags), &walk);
            assert_eq!((reading.cpu, reading.interrupted_ns), (3, 9));
            reading.idle_ns
        };
        let busy = cpu_cpu_flags::HAS_IDLE | cpu_cpu_flags::IDLE_LACKS_CLOCK_OFFSET;
        assert_eq!(idle(0, Some(5)), None);
        assert_eq!(idle(cpu_cpu_flags::HAS_IDLE, None), Some(70));
        assert_eq!(idle(busy, Some(5)), Some(75));
        assert_eq!(idle(busy | cpu_cpu_flags::IDLE_HOLDS_INTERRUPTED, Some(5)), Some(66));
        assert_eq!(idle(busy, None), None);
    }

    fn reading(idle_ns: u64, steal_ns: u64) -> CpuReading {
        let by_tick = Some(ByTick { steal_ns, ..ByTick::default() });
        CpuReading { cpu: 1, idle_ns: Some(idle_ns), interrupted_ns: 0, by_tick }
    }

    /// Case 21: an offline CPU counted as idle.
    #[test]
    fn a_cpu_is_not_idle_while_it_is_offline() {
        let mut cpus = Cpus { window_ns: 1000, ..Cpus::default() };
        let mut walk = |ns, is_online| {
            cpus.add(reading(ns, ns), is_online);
            let shown = cpus.in_window();
            assert!(shown.iter().all(|cpu| cpu.idle == cpu.steal), "{shown:?}");
            shown.iter().map(|cpu| cpu.idle.unwrap().as_nanos()).collect::<Vec<_>>()
        };
        assert_eq!(walk(100, true), [0]);
        assert_eq!(walk(150, true), [50]);
        assert_eq!(walk(250, false), [50]);
        assert_eq!(walk(350, false), [50]);
        assert_eq!(walk(450, true), [50]);
        assert_eq!(walk(460, true), [60]);
        walk(470, false);
        cpus.rebase();
        assert!(cpus.known.is_empty());
        cpus.add(reading(480, 480), false);
        assert!(cpus.known.is_empty());
    }

    #[test]
    fn what_a_tick_adds_to_a_short_window_is_spread() {
        let mut cpus = Cpus { window_ns: 10, ..Cpus::default() };
        cpus.add(reading(0, 0), true);
        cpus.add(reading(5, 25), true);
        let mut shown = Vec::new();
        for _ in 0..4 {
            shown.push(cpus.in_window()[0].steal.unwrap().as_nanos());
            cpus.rebase();
        }
        assert_eq!(shown, [10, 10, 5, 0]);
    }
}
