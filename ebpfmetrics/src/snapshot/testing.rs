//! A usage and a snapshot for the tests of this module and of `group`.

use std::ops::AddAssign;

use super::{LossCause, LossScope, ProbeSnapshot, Process, Usage, add_known, known_since};
use crate::process::{ProcessId, ProcessInfo};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Counter {
    pub(crate) count: u64,
    pub(crate) known: Option<u64>,
}

impl Counter {
    pub(crate) fn of(count: u64) -> Self {
        Self { count, known: None }
    }
}

impl AddAssign<&Self> for Counter {
    fn add_assign(&mut self, more: &Self) {
        self.count += more.count;
        add_known(&mut self.known, more.known);
    }
}

impl Usage for Counter {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            count: self.count.saturating_sub(earlier.count),
            known: known_since(self.known, earlier.known),
        }
    }
}

crate::usage_operators!(Counter);

pub(crate) type Row = Process<Counter>;

pub(crate) type Sample = ProbeSnapshot<Counter, ()>;

pub(crate) fn row(pid: u32, start_time_ns: u64, count: u64) -> Row {
    let id = ProcessId { pid, start_time_ns };
    Process::new(id, ProcessInfo::default(), Counter::of(count), Counter::of(count))
}

pub(crate) fn sample(rows: impl IntoIterator<Item = Row>) -> Sample {
    Sample { processes: rows.into_iter().collect(), ..Sample::default() }
}

#[derive(Clone, Copy)]
pub(crate) enum TestLoss {
    TableFull,
    Unmatched,
}

impl AsRef<str> for TestLoss {
    fn as_ref(&self) -> &str {
        match self {
            Self::TableFull => "table_full",
            Self::Unmatched => "unmatched",
        }
    }
}

impl LossCause for TestLoss {
    const PROBE: &'static str = "test";
    const ALL: &'static [Self] = &[Self::TableFull, Self::Unmatched];

    fn scope(self) -> LossScope {
        match self {
            Self::TableFull => LossScope::Processes,
            Self::Unmatched => LossScope::Machine,
        }
    }
}
