//! Slow I/O, which a disk probe reports.

use std::sync::Arc;

use super::{Event, EventsBuilder, ring::SlowIoBuffer};
use crate::{
    error::Result,
    probes::disk::{self, DiskProbe, DiskSystem, DiskUsage, SlowIo},
    record::EventsSlowIoRecord,
    set::ProbeSet,
    snapshot::Handle,
};

impl EventsBuilder {
    /// Reports [`Event::SlowIo`] of a probe that was loaded with
    /// [`slow_io`](crate::disk::DiskProbeBuilder::slow_io). The buffer of the probe is then
    /// the buffer of all events, so that one reader gets them all in order.
    ///
    /// Only the programs of the probe run for it. There are no more of these events after the
    /// probe is dropped.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use ebpfmetrics::{DiskProbe, Events};
    ///
    /// let disk = DiskProbe::builder().slow_io(Duration::from_millis(100)).load()?;
    /// let mut events = Events::builder().slow_io(&disk)?.load()?;
    /// # Ok::<(), ebpfmetrics::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidOption`](crate::ErrorKind::InvalidOption) if the probe was loaded without this
    /// option, or if other `Events` read its buffer.
    pub fn slow_io(self, disk: &DiskProbe) -> Result<Self> {
        Ok(self.slow_io_buffer(disk.slow_io_buffer()?.into()))
    }

    /// As [`slow_io`](Self::slow_io), with a disk probe in a set.
    ///
    /// # Errors
    /// As [`slow_io`](Self::slow_io), and if the probe is not in the set.
    pub fn slow_io_of(
        self,
        probes: &ProbeSet,
        disk: Handle<DiskUsage, DiskSystem>,
    ) -> Result<Self> {
        Ok(self.slow_io_buffer(probes.slow_io_buffer(disk)?.into()))
    }
}

impl From<Arc<disk::SlowIoBuffer>> for SlowIoBuffer {
    fn from(buffer: Arc<disk::SlowIoBuffer>) -> Self {
        Self { maps: vec![buffer.ring.clone(), buffer.lost.clone()], reader: buffer }
    }
}

/// The process is missing if none is charged.
pub(super) fn event(record: &EventsSlowIoRecord) -> Event {
    let process = super::decode::process(&record.event);
    let is_charged = record.event.process.tgid != 0;
    Event::SlowIo { process: is_charged.then_some(process), io: SlowIo::from_record(record) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        events::decode::{Decoder, tests::record},
        probes::disk::{DiskClass, DiskOperation},
        record::event_kind,
    };

    fn slow(tgid: u32, class: u32) -> EventsSlowIoRecord {
        let mut event = record(event_kind::SLOW_IO, 2);
        event.process.tgid = tgid;
        let (device, operation, padding) = (8 << 20 | 3, 1, 0);
        let (queue_ns, device_ns, bytes) = (20, 300, 4096);
        EventsSlowIoRecord { event, queue_ns, device_ns, bytes, device, class, operation, padding }
    }

    #[test]
    fn slow_io_has_the_process_that_is_charged() {
        let mut decoder = Decoder::new(4096);
        decoder.record(bytemuck::bytes_of(&slow(5, 1)));
        decoder.record(bytemuck::bytes_of(&slow(0, 6)));
        let events: Vec<_> = std::iter::from_fn(|| decoder.next()).collect();
        let [Event::Lost { events: 2 }, known, unknown] = events.as_slice() else {
            panic!("{events:?}")
        };
        let Event::SlowIo { process: Some(process), io } = known else { panic!("{known:?}") };
        assert_eq!((process.id.pid, process.time_ns), (5, 77));
        assert_eq!((io.device.major, io.device.minor, io.bytes), (8, 3, 4096));
        assert_eq!((io.operation, io.class), (DiskOperation::Write, Some(DiskClass::WriteBack)));
        assert_eq!((io.queue_time.as_nanos(), io.device_time.as_nanos()), (20, 300));
        let Event::SlowIo { process: None, io } = unknown else { panic!("{unknown:?}") };
        assert_eq!(io.class, None);
        #[cfg(feature = "serde")]
        for event in [known, unknown] {
            let json = serde_json::to_string(event).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), *event, "{json}");
        }
    }

    #[test]
    fn a_kind_with_the_wrong_record_is_lost() {
        let mut decoder = Decoder::new(4096);
        decoder.record(bytemuck::bytes_of(&record(event_kind::SLOW_IO, 0)));
        let mut wrong = slow(5, 1);
        (wrong.event.kind, wrong.event.lost_before) = (event_kind::STARTED, 0);
        decoder.record(bytemuck::bytes_of(&wrong));
        for _ in 0..2 {
            assert_eq!(decoder.next(), Some(Event::Lost { events: 1 }));
        }
    }
}
