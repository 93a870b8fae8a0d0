//! Random histories of processes, against what they really did.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Event {
    Start(u32),
    Work(u32, u64),
    StartThread(u32),
    ExitThread(u32),
    /// All threads exit; whether the hook is seen.
    Exit(u32, bool),
    /// The zombie leaves its CPU.
    Switch(u32),
    /// The parent waits for it: its pid is free.
    Reap(u32),
    /// The kernel frees one of those that have been reaped, or never if `false`.
    Release(usize, bool),
    Wait(u64),
    /// A read, with what happens between its start and the walk, and between the walk and
    /// the final records; whether it ends the window.
    Read(Vec<Event>, Vec<Event>, bool),
}

fn simple() -> impl Strategy<Value = Event> {
    let pid = || 1_u32..6;
    prop_oneof![
        3 => pid().prop_map(Event::Start),
        4 => (pid(), 0_u64..100).prop_map(|(pid, count)| Event::Work(pid, count)),
        1 => pid().prop_map(Event::StartThread),
        1 => pid().prop_map(Event::ExitThread),
        3 => (pid(), prop::bool::weighted(0.9)).prop_map(|(pid, seen)| Event::Exit(pid, seen)),
        2 => pid().prop_map(Event::Switch),
        3 => pid().prop_map(Event::Reap),
        3 => (any::<usize>(), prop::bool::weighted(0.9)).prop_map(|(at, is)| Event::Release(at, is)),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let few = || prop::collection::vec(simple(), 0..3);
    prop_oneof![
        12 => simple(),
        1 => prop_oneof![Just(1_000_000_u64), Just(700_000_000), Just(3_000_000_000)].prop_map(Event::Wait),
        3 => (few(), few(), any::<bool>())
            .prop_map(|(before, after, reset)| Event::Read(before, after, reset)),
    ]
}

#[derive(Clone, Debug, Default)]
struct Modelled {
    /// Of live threads; the first is the leader.
    own: Vec<u64>,
    dead: u64,
    is_zombie: bool,
    /// A zombie that will not run again.
    is_settled: bool,
}

impl Modelled {
    fn total(&self) -> u64 {
        self.own.iter().sum::<u64>() + self.dead
    }
}

/// A process that has been reaped and is not released yet.
#[derive(Clone, Debug)]
struct Reaped {
    id: ProcessId,
    total: u64,
    since_ns: u64,
}

struct Model {
    now_ns: u64,
    alive: BTreeMap<u32, (ProcessId, Modelled)>,
    reaped: Vec<Reaped>,
    /// `ended`: the count at the exit or the release, and whether it is released.
    ended: BTreeMap<ProcessId, (u64, bool)>,
    max_ended: usize,
    overflow: (u64, u64),
    worked: BTreeMap<ProcessId, u64>,
    /// What a read cannot know completely: counted as a loss, if it was seen at all.
    lost: BTreeMap<ProcessId, u64>,
    limited: bool,
    set: TestSet,
    reported: BTreeMap<ProcessId, u64>,
    in_overflow: u64,
    in_window: HashMap<ProcessId, u64>,
    totals: HashMap<ProcessId, u64>,
    missing: u64,
    max_exited: usize,
    /// Ended processes that may be in the overflow.
    without_row: BTreeSet<ProcessId>,
}

impl Model {
    fn new(max_exited: usize, max_ended: usize, most_per_window: Option<u64>) -> Self {
        let table = ProcessTable::new(max_exited, false, true);
        let mut set = TestSet::with(table, Count { most_per_window, ..Count::default() });
        set.read(read_at(1, &[]));
        set.reset();
        Self {
            now_ns: 1,
            alive: BTreeMap::new(),
            reaped: Vec::new(),
            ended: BTreeMap::new(),
            max_ended,
            overflow: (0, 0),
            worked: BTreeMap::new(),
            lost: BTreeMap::new(),
            limited: most_per_window.is_some(),
            set,
            reported: BTreeMap::new(),
            in_overflow: 0,
            in_window: HashMap::new(),
            totals: HashMap::new(),
            missing: 0,
            max_exited,
            without_row: BTreeSet::new(),
        }
    }

    fn step(&mut self, event: Event) -> Result<(), TestCaseError> {
        self.now_ns += 1;
        match event {
            Event::Start(pid) => {
                let id = id(pid, self.now_ns);
                let new = Modelled { own: vec![0], ..Modelled::default() };
                self.alive.entry(pid).or_insert((id, new));
            }
            Event::Work(pid, count) => {
                // a zombie's last steps count too
                if let Some((id, process)) = self.alive.get_mut(&pid)
                    && !process.is_settled
                {
                    let thread = count as usize % process.own.len();
                    process.own[thread] += count;
                    *self.worked.entry(*id).or_default() += count;
                }
            }
            Event::StartThread(pid) => {
                if let Some((_, process)) = self.alive.get_mut(&pid)
                    && !process.is_zombie
                {
                    process.own.push(0);
                }
            }
            Event::ExitThread(pid) => {
                if let Some((_, process)) = self.alive.get_mut(&pid)
                    && process.own.len() > 1
                {
                    process.dead += process.own.pop().unwrap_or_default();
                }
            }
            Event::Exit(pid, is_seen) => {
                if let Some((id, process)) = self.alive.get_mut(&pid)
                    && !process.is_zombie
                {
                    process.is_zombie = true;
                    process.dead = process.total() - process.own[0];
                    process.own.truncate(1);
                    if is_seen && self.ended.len() < self.max_ended {
                        self.ended.insert(*id, (process.total(), false));
                    }
                }
            }
            Event::Switch(pid) => {
                if let Some((_, process)) = self.alive.get_mut(&pid) {
                    process.is_settled = process.is_zombie;
                }
            }
            Event::Reap(pid) => {
                if self.alive.get(&pid).is_some_and(|(_, process)| process.is_zombie)
                    && let Some((id, process)) = self.alive.remove(&pid)
                {
                    let total = process.total();
                    self.reaped.push(Reaped { id, total, since_ns: self.now_ns });
                }
            }
            Event::Release(at, is_seen) => {
                if !self.reaped.is_empty() {
                    let reaped = self.reaped.remove(at % self.reaped.len());
                    self.release(&reaped, is_seen);
                }
            }
            Event::Wait(ns) => self.now_ns += ns,
            Event::Read(before, after, reset) => self.read(before, after, reset)?,
        }
        Ok(())
    }

    fn release(&mut self, reaped: &Reaped, is_seen: bool) {
        let has_record = self.ended.contains_key(&reaped.id);
        let has_room = has_record || self.ended.len() < self.max_ended;
        let is_late = self.now_ns - reaped.since_ns > RELEASE_TIMEOUT_NS / 2;
        if !has_record && (!is_seen || is_late) {
            // It may have been settled by then.
            self.lost.insert(reaped.id, reaped.total);
        }
        match (is_seen, has_room) {
            (true, true) => {
                self.ended.insert(reaped.id, (reaped.total, true));
            }
            // no release takes longer than the timeout where it would count twice
            (true, false) if !is_late => {
                self.overflow.0 += 1;
                self.overflow.1 += reaped.total;
            }
            // The record stays, and the counters are not there any more.
            (_, _) => {
                if let Some((known, _)) = self.ended.get(&reaped.id) {
                    self.lost.insert(reaped.id, reaped.total - known);
                }
            }
        }
    }

    fn walk(&self, at_ns: u64) -> WalkBytes {
        let mut walk = WalkBytes::at(at_ns);
        for (id, process) in self.alive.values() {
            match process.is_settled {
                true => walk.settled_zombie(*id),
                false => walk.leader(*id),
            }
            walk.count(process.own[0], process.dead);
            for (tid, own) in (100..).zip(&process.own[1..]) {
                walk.thread(*id, tid);
                walk.count(*own, process.dead);
            }
        }
        walk
    }

    fn ends(&self) -> Vec<End> {
        let one = |(&id, &(count, is_released)): (&ProcessId, &(u64, bool))| {
            let end = end(id, count, is_released);
            let alive = self.alive.values().find(|(alive, _)| *alive == id);
            let reaped = self.reaped.iter().find(|reaped| reaped.id == id);
            match (alive, reaped) {
                (Some((_, process)), _) => settled(&end, process.total(), 1),
                (None, Some(reaped)) => settled(&end, reaped.total, 0),
                (None, None) => end,
            }
        };
        self.ended.iter().map(one).collect()
    }

    fn read(
        &mut self,
        before: Vec<Event>,
        after: Vec<Event>,
        reset: bool,
    ) -> Result<(), TestCaseError> {
        let (at_ns, overflow) = (self.now_ns, self.overflow);
        before.into_iter().try_for_each(|event| self.step(event))?;
        let walk = self.walk(at_ns);
        let alive: Vec<_> = self.alive.values().map(|(id, _)| *id).collect();
        after.into_iter().try_for_each(|event| self.step(event))?;
        let ends = self.ends();
        let is_of_window = |id: &ProcessId| id.start_time_ns <= at_ns && !alive.contains(id);
        let ended: Vec<_> = (ends.iter())
            .filter(|end| is_of_window(&end.id))
            .map(|end| (end.id, self.worked.get(&end.id).copied().unwrap_or_default()))
            .collect();
        let gone = self.set.try_read(KernelRead { walk, ends, overflow, ..KernelRead::default() });
        for key in gone.unwrap() {
            self.ended.remove(&key.id());
        }
        self.check(&ended)?;
        if reset {
            self.reset();
        }
        Ok(())
    }

    fn check(&mut self, ended: &[(ProcessId, u64)]) -> Result<(), TestCaseError> {
        let rows = self.set.rows();
        prop_assert!(rows.is_sorted_by(|a, b| a.id < b.id), "{rows:?}");
        let exited = rows.iter().filter(|row| row.info.exited).count();
        prop_assert!(exited <= self.max_exited);
        for row in &rows {
            let before = self.in_window.insert(row.id, row.count).unwrap_or_default();
            prop_assert!(row.count >= before, "{row:?} had {before}");
            let before = self.totals.insert(row.id, row.total).unwrap_or_default();
            prop_assert!(row.total >= before, "{row:?} had {before}");
            let reported = self.reported.get(&row.id).copied().unwrap_or_default() + row.count;
            let worked = self.worked.get(&row.id).copied().unwrap_or_default();
            prop_assert!(reported <= worked, "{row:?}: {reported} of {worked} reported");
        }
        if exited == self.max_exited {
            self.without_row.extend(ended.iter().map(|(id, _)| *id));
        }
        if self.limited {
            return Ok(());
        }
        for (id, worked) in ended {
            if self.lost.contains_key(id) || self.without_row.contains(id) {
                continue;
            }
            let now = rows.iter().find(|row| row.id == *id);
            let before = self.reported.get(id).copied();
            let reported = before.unwrap_or_default() + now.map_or(0, |row| row.count);
            prop_assert!(now.is_some() || before.is_some(), "{id:?} has no row");
            prop_assert!(reported == *worked, "{id:?}: {reported} of {worked} reported");
        }
        Ok(())
    }

    fn reset(&mut self) {
        for row in self.set.rows() {
            *self.reported.entry(row.id).or_default() += row.count;
        }
        self.in_overflow += self.set.overflow().1;
        self.missing += self.set.missing();
        self.set.reset();
        self.in_window.clear();
    }

    /// Lets everything come to an end, and compares the sums.
    fn finish(mut self) -> Result<(), TestCaseError> {
        for pid in 1..6 {
            self.step(Event::Exit(pid, true))?;
            self.step(Event::Reap(pid))?;
        }
        while !self.reaped.is_empty() {
            self.step(Event::Release(0, true))?;
        }
        for _ in 0..200 {
            self.step(Event::Wait(RELEASE_TIMEOUT_NS))?;
            self.read(vec![], vec![], true)?;
        }
        prop_assert!(self.set.rows().is_empty(), "{:?}", self.set.rows());
        prop_assert!(self.ended.is_empty(), "{:?} stay in the kernel", self.ended);
        let worked: u64 = self.worked.values().sum();
        let lost: u64 = self.lost.values().sum();
        let reported = self.reported.values().sum::<u64>() + self.in_overflow;
        prop_assert!(reported <= worked, "{reported} reported, {worked} worked");
        prop_assert!(
            reported + lost >= worked,
            "{reported} reported, {worked} worked, {lost} lost"
        );
        if self.max_exited.min(self.max_ended) == 100 {
            let is_short = |(id, reported): &(&ProcessId, &u64)| **reported < self.worked[*id];
            let short = self.reported.iter().filter(|it| self.worked.contains_key(it.0));
            let short = short.filter(is_short).count() as u64;
            prop_assert!(short <= self.missing, "{short} are short, {} missing", self.missing);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The rows and the overflow of all windows add up to what was done, less what is counted
    /// as lost. Nothing is reported twice; no process has two rows in a window; a process
    /// that ended before the walk has its row with all its work; no counter goes back. A
    /// process that is short of its work is counted as missing.
    #[test]
    fn windows_add_up_to_what_was_done(
        events in prop::collection::vec(event(), 1..80),
        max_exited in prop_oneof![Just(100_usize), 0_usize..4],
        max_ended in prop_oneof![Just(100_usize), 0_usize..4],
        most_per_window in prop::option::weighted(0.3, 20_u64..200),
    ) {
        let mut model = Model::new(max_exited, max_ended, most_per_window);
        for event in events {
            model.step(event)?;
        }
        model.finish()?;
    }
}
