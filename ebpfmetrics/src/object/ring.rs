use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{Map, MapData, MapError, RingBuf};

/// The reader of a ring buffer. A ring buffer can have only one.
pub(crate) struct Ring(RingBuf<MapData>);

impl Ring {
    pub(super) fn open(fd: std::os::fd::OwnedFd) -> Result<Self, MapError> {
        MapData::from_fd(fd).and_then(Map::from_map_data).and_then(RingBuf::try_from).map(Self)
    }

    /// Removes the next record, if there is one, and passes it to `read`.
    pub(crate) fn next<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.0.next().map(|record| read(&record))
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
