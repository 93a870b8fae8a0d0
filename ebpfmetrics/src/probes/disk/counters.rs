use std::ops::AddAssign;

use super::class::{DiskClass, DiskOperation};

/// Operations that completed in a window. Counters can be added.
///
/// As in `/proc/diskstats`, a request counts once, together with all bios that were merged
/// into it. It counts when it completes, with its bytes even if it failed. There, `writes`
/// are the sum of `writes` and `flushes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct DiskCounters {
    /// [`DiskOperation::Read`].
    pub reads: u64,
    /// [`DiskOperation::Write`].
    pub writes: u64,
    /// Bytes requested from the device.
    pub read_bytes: u64,
    /// Bytes sent to the device.
    pub written_bytes: u64,
    /// [`DiskOperation::Flush`].
    pub flushes: u64,
    /// [`DiskOperation::Discard`].
    pub discards: u64,
    /// Bytes that the device was told to discard.
    pub discarded_bytes: u64,
    /// Operations that failed, or parts of them if the device reports parts.
    pub errors: u64,
}

impl DiskCounters {
    /// Operations since an earlier reading, never below zero.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        self.zip(earlier, u64::saturating_sub)
    }

    /// All operations.
    pub fn operations(&self) -> u64 {
        let more = [self.writes, self.flushes, self.discards];
        more.into_iter().fold(self.reads, u64::saturating_add)
    }

    pub(super) fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn of(operation: DiskOperation, count: u64, bytes: u64, errors: u64) -> Self {
        let none = Self { errors, ..Self::default() };
        match operation {
            DiskOperation::Read => Self { reads: count, read_bytes: bytes, ..none },
            DiskOperation::Write => Self { writes: count, written_bytes: bytes, ..none },
            DiskOperation::Flush => Self { flushes: count, ..none },
            DiskOperation::Discard => Self { discards: count, discarded_bytes: bytes, ..none },
        }
    }

    fn zip(&self, other: &Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            reads: f(self.reads, other.reads),
            writes: f(self.writes, other.writes),
            read_bytes: f(self.read_bytes, other.read_bytes),
            written_bytes: f(self.written_bytes, other.written_bytes),
            flushes: f(self.flushes, other.flushes),
            discards: f(self.discards, other.discards),
            discarded_bytes: f(self.discarded_bytes, other.discarded_bytes),
            errors: f(self.errors, other.errors),
        }
    }
}

impl AddAssign<&Self> for DiskCounters {
    fn add_assign(&mut self, more: &Self) {
        *self = self.zip(more, u64::saturating_add);
    }
}

/// Operations by class.
///
/// In JSON, classes without operations are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct DiskByClass {
    /// [`DiskClass::Foreground`].
    pub foreground: DiskCounters,
    /// [`DiskClass::WriteBack`].
    pub write_back: DiskCounters,
    /// [`DiskClass::Metadata`].
    pub metadata: DiskCounters,
    /// [`DiskClass::Swap`].
    pub swap: DiskCounters,
    /// [`DiskClass::Journal`].
    pub journal: DiskCounters,
    /// [`DiskClass::Kernel`].
    pub kernel: DiskCounters,
}

impl DiskByClass {
    /// Operations of one class.
    pub fn get(&self, class: DiskClass) -> &DiskCounters {
        match class {
            DiskClass::Foreground => &self.foreground,
            DiskClass::WriteBack => &self.write_back,
            DiskClass::Metadata => &self.metadata,
            DiskClass::Swap => &self.swap,
            DiskClass::Journal => &self.journal,
            DiskClass::Kernel => &self.kernel,
        }
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, class: DiskClass) -> &mut DiskCounters {
        match class {
            DiskClass::Foreground => &mut self.foreground,
            DiskClass::WriteBack => &mut self.write_back,
            DiskClass::Metadata => &mut self.metadata,
            DiskClass::Swap => &mut self.swap,
            DiskClass::Journal => &mut self.journal,
            DiskClass::Kernel => &mut self.kernel,
        }
    }

    /// Every class with its operations.
    pub fn iter(&self) -> impl Iterator<Item = (DiskClass, &DiskCounters)> {
        DiskClass::ALL.into_iter().map(|class| (class, self.get(class)))
    }

    /// Operations that the charged process caused, see [`DiskClass::names_the_cause`].
    pub fn caused(&self) -> DiskCounters {
        self.iter().filter(|(class, _)| class.names_the_cause()).map(|(_, counters)| counters).sum()
    }

    /// Operations since an earlier reading, never below zero.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = *self;
        for class in DiskClass::ALL {
            *since.get_mut(class) = self.get(class).since(earlier.get(class));
        }
        since
    }
}

impl AddAssign<&Self> for DiskByClass {
    fn add_assign(&mut self, more: &Self) {
        for (class, counters) in more.iter() {
            *self.get_mut(class) += counters;
        }
    }
}

crate::usage_operators!(DiskCounters, DiskByClass);

#[cfg(feature = "serde")]
impl serde::Serialize for DiskByClass {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().filter(|(_, counters)| !counters.is_zero()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_has_its_own_sum() {
        let mut by_class = DiskByClass::default();
        for (number, class) in DiskClass::ALL.into_iter().enumerate() {
            let counters = DiskCounters { reads: 1 << number, ..DiskCounters::default() };
            *by_class.get_mut(class) += counters;
        }
        for (number, (_, counters)) in by_class.iter().enumerate() {
            assert_eq!(counters.reads, 1 << number);
        }
        assert_eq!(by_class.caused().reads, 0b11);
        assert_eq!((by_class + by_class).since(&by_class), by_class);
    }

    #[test]
    fn no_sum_overflows() {
        let most = DiskCounters::of(DiskOperation::Write, u64::MAX, u64::MAX, u64::MAX);
        assert_eq!(most + most, most);
        let reads = DiskCounters::of(DiskOperation::Read, 1, 1, 0);
        assert_eq!((most + reads).operations(), u64::MAX);
        assert_eq!(reads.since(&most).writes, 0);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn classes_round_trip_through_json() {
        let mut by_class = DiskByClass::default();
        by_class.foreground.reads = 3;
        let json = serde_json::to_value(by_class).unwrap();
        assert_eq!(json["foreground"]["reads"], 3);
        assert_eq!(json.as_object().unwrap().len(), 1);
        assert_eq!(serde_json::from_value::<DiskByClass>(json).unwrap(), by_class);
    }
}
