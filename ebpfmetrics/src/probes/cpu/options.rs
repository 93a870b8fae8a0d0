use super::Cpu;
use crate::{error::Result, options::check_option, set::SetOptions};

/// How CPU time is measured. Both ways give the same figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum CpuAccounting {
    /// Reads the scheduler's counters at the snapshot. Low overhead: nothing runs on a
    /// context switch.
    #[default]
    Ledger,
    /// Charges the process that leaves a CPU at every context switch, by the growth of the
    /// same counters. Costs tens of ns per switch; for comparison with the ledger. If switches of a
    /// process that began after loading were not seen, it gets their time when it ends.
    SchedSwitch,
}

const SLOTS: u32 = 32_768;

/// Options of a [`CpuProbe`](super::CpuProbe).
#[derive(Clone, Debug)]
#[must_use = "nothing is loaded until load()"]
pub struct CpuProbeBuilder {
    pub(super) accounting: CpuAccounting,
    pub(super) threads: bool,
    switch_table_entries: u32,
    set: SetOptions,
}

impl CpuProbeBuilder {
    /// How CPU time is measured; [`CpuAccounting::Ledger`] by default.
    pub fn accounting(mut self, accounting: CpuAccounting) -> Self {
        self.accounting = accounting;
        self
    }

    /// Whether snapshots list threads too. They do not by default.
    pub fn threads(mut self, threads: bool) -> Self {
        self.threads = threads;
        self
    }

    /// Size of the process table of [`CpuAccounting::SchedSwitch`], rounded up to a power of
    /// two. A quarter as many again may share a slot; time beyond that is counted as the loss
    /// [`CpuLoss::SwitchTableFull`](super::CpuLoss). 32,768 by default, 1.5 MiB of kernel
    /// memory.
    pub fn switch_table_entries(mut self, entries: u32) -> Self {
        self.switch_table_entries = entries;
        self
    }

    /// Entries of the process table: a power of two.
    pub(super) fn slots(&self) -> Result<u32> {
        let entries = self.switch_table_entries;
        check_option("cpu", "switch_table_entries", entries, 1..=1 << 22)?;
        Ok(entries.next_power_of_two())
    }
}

impl Default for CpuProbeBuilder {
    fn default() -> Self {
        Self {
            accounting: CpuAccounting::default(),
            threads: false,
            switch_table_entries: SLOTS,
            set: SetOptions::default(),
        }
    }
}

crate::probe_builder!(CpuProbeBuilder, Cpu);
