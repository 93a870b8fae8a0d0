//! Access to the buffer of slow I/O events, for their reader.

use std::sync::Arc;

use super::{collector::Disk, slow_io_buffer::SlowIoBuffer, system::DiskSystem, usage::DiskUsage};
use crate::{
    error::{Error, ErrorKind, Result},
    set::{ProbeSet, Single},
    snapshot::Handle,
};

#[allow(dead_code, reason = "for the events")]
impl Disk {
    /// The buffer of slow I/O events, for its only reader.
    pub(crate) fn slow_io_buffer(&self) -> Result<Arc<SlowIoBuffer>> {
        let buffer = self.slow_io.as_ref();
        let buffer = buffer.ok_or_else(|| invalid("the disk probe was loaded without it"))?;
        // a second reference is that of a reader
        match Arc::strong_count(buffer) {
            1 => Ok(Arc::clone(buffer)),
            _ => Err(invalid("the buffer of this disk probe already has a reader")),
        }
    }
}

#[allow(dead_code, reason = "for the events")]
impl Single<Disk> {
    /// As [`Disk::slow_io_buffer`].
    pub(crate) fn slow_io_buffer(&self) -> Result<Arc<SlowIoBuffer>> {
        self.collector().ok_or_else(|| invalid("there is no disk probe"))?.slow_io_buffer()
    }
}

#[allow(dead_code, reason = "for the events")]
impl ProbeSet {
    /// As [`Disk::slow_io_buffer`].
    pub(crate) fn slow_io_buffer(
        &self,
        disk: Handle<DiskUsage, DiskSystem>,
    ) -> Result<Arc<SlowIoBuffer>> {
        let disk = self.collector::<Disk>(disk);
        disk.ok_or_else(|| invalid("the probe is not in this set"))?.slow_io_buffer()
    }
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOption, format!("slow_io: {what}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::probe::Probe;

    #[test]
    fn a_buffer_has_one_reader_at_a_time() {
        let kind = |result: Result<Arc<SlowIoBuffer>>| result.map(drop).unwrap_err().kind();
        let without = Single::<Disk>::builder().load().unwrap();
        assert_eq!(kind(without.slow_io_buffer()), ErrorKind::InvalidOption);
        let limit = Duration::from_secs(3600);
        let with = Single::<Disk>::builder().slow_io(limit).load().unwrap();
        let programs = |probe: &Single<Disk>| probe.health().unwrap().programs;
        assert_eq!(programs(&with), programs(&without) + 1, "the one on exec");
        let reader = with.slow_io_buffer().unwrap();
        assert_eq!((reader.ring.name(), reader.lost.name()), ("events_ring", "events_lost"));
        assert_eq!(kind(with.slow_io_buffer()), ErrorKind::InvalidOption);
        drop(reader);
        assert!(with.slow_io_buffer().is_ok());

        let mut set = ProbeSet::new().unwrap();
        let disk = set.add(Single::<Disk>::builder().slow_io(limit)).unwrap();
        assert!(set.slow_io_buffer(disk).is_ok());
        set.remove(disk).unwrap();
        assert_eq!(kind(set.slow_io_buffer(disk)), ErrorKind::InvalidOption);
    }
}
