use super::Slab;
use crate::{error::Result, options::check_option, set::SetOptions};

const SLOTS: u32 = 16_384;

/// Options of a [`SlabProbe`](super::SlabProbe).
#[derive(Clone, Debug)]
#[must_use = "nothing is loaded until load()"]
pub struct SlabProbeBuilder {
    addresses: Option<u32>,
    table_entries: u32,
    set: SetOptions,
}

/// Checked sizes of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// A power of two.
    pub(super) slots: u32,
    pub(super) overflow: u32,
    /// `None` without the address map.
    pub(super) addresses: Option<u32>,
}

impl SlabProbeBuilder {
    /// Stores the process and the size of up to this many allocations at a time. Frees can
    /// then be given in bytes and attributed to the process that allocated. Off by default.
    ///
    /// It makes each hook two to three times as expensive. Kernel memory is allocated at
    /// loading: 80 bytes per entry, and 16 bytes per entry rounded up to a power of two, so
    /// 9.6 MiB for 100,000 entries. Allocations beyond that are counted as the loss
    /// [`SlabLoss::AddressMapFull`](super::SlabLoss) and in
    /// [`SlabUsage::untracked_bytes`](super::SlabUsage::untracked_bytes). A machine can have
    /// millions of slab objects, but only those allocated while the probe is loaded take an
    /// entry.
    pub fn address_map(mut self, entries: u32) -> Self {
        self.addresses = Some(entries);
        self
    }

    /// Size of the table of processes, rounded up to a power of two. A quarter as many again
    /// may share a slot; events beyond that are counted as the loss
    /// [`SlabLoss::ProcessTableFull`](super::SlabLoss). 16,384 by default, 2.5 MiB of kernel
    /// memory.
    pub fn table_entries(mut self, entries: u32) -> Self {
        self.table_entries = entries;
        self
    }

    pub(super) fn sizes(&self) -> Result<Sizes> {
        if let Some(entries) = self.addresses {
            check_option("slab", "address_map", entries, 1..=1 << 26)?;
        }
        check_option("slab", "table_entries", self.table_entries, 1..=1 << 22)?;
        let slots = self.table_entries.next_power_of_two();
        Ok(Sizes { slots, overflow: (slots / 4).max(1), addresses: self.addresses })
    }
}

impl Default for SlabProbeBuilder {
    fn default() -> Self {
        Self { addresses: None, table_entries: SLOTS, set: SetOptions::default() }
    }
}

crate::probe_builder!(SlabProbeBuilder, Slab);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn sizes_are_powers_of_two_in_range() {
        let sizes = |slots, overflow, addresses| Sizes { slots, overflow, addresses };
        let builder = SlabProbeBuilder::default;
        assert_eq!(builder().sizes().unwrap(), sizes(16_384, 4096, None));
        let small = builder().table_entries(1).address_map(7);
        assert_eq!(small.sizes().unwrap(), sizes(1, 1, Some(7)));
        assert_eq!(builder().table_entries(1000).sizes().unwrap(), sizes(1024, 256, None));
        for invalid in [
            builder().table_entries(0),
            builder().table_entries((1 << 22) + 1),
            builder().address_map(0),
            builder().address_map((1 << 26) + 1),
        ] {
            assert_eq!(invalid.sizes().unwrap_err().kind(), ErrorKind::InvalidOption);
        }
    }
}
