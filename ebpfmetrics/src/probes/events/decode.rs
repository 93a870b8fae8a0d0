//! From records to events. Pure: no system access.

use std::{collections::VecDeque, os::unix::process::ExitStatusExt as _, process::ExitStatus};

use super::{
    Event, ProcessEvent,
    record::{EventRecord, SlowIoRecord, kind},
};
use crate::{ProcessInfo, SlowIo};

/// What has been read and not handed out yet, and how many events the reader knows to
/// be lost.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    page_bytes: u64,
    lost: u64,
    next: VecDeque<Event>,
}

impl Decoder {
    pub(super) fn new(page_bytes: u64) -> Self {
        Self { page_bytes, ..Self::default() }
    }

    pub(super) fn next(&mut self) -> Option<Event> {
        self.next.pop_front()
    }

    /// Takes in a record.
    pub(super) fn record(&mut self, record: &[u8]) {
        let slow_io = bytemuck::try_pod_read_unaligned::<SlowIoRecord>(record).ok();
        let event = match slow_io {
            Some(record) => Ok(record.event),
            None => bytemuck::try_pod_read_unaligned(record),
        };
        // a record that is not as expected is not told either
        let Ok(event) = event else { return self.next.push_back(Event::Lost { events: 1 }) };
        let slow_io = slow_io.as_ref().map(SlowIo::from_record);
        self.lost(event.lost_before);
        self.next.push_back(self.event(&event, slow_io));
    }

    /// Takes in how many events found no room until here.
    pub(super) fn lost(&mut self, total: u64) {
        // Records of several CPUs may cross: what has been told is not taken back.
        if let Some(events @ 1..) = total.checked_sub(self.lost) {
            self.lost = total;
            self.next.push_back(Event::Lost { events });
        }
    }

    fn event(&self, record: &EventRecord, slow_io: Option<SlowIo>) -> Event {
        let exited = record.about.has_ended();
        let process = ProcessEvent {
            time_ns: record.time_ns,
            id: record.about.process(),
            info: ProcessInfo { exited, ..record.about.info() },
        };
        match (record.kind, slow_io) {
            (kind::SLOW_IO, Some(io)) => {
                Event::SlowIo { process: (record.about.tgid != 0).then_some(process), io }
            }
            (kind::STARTED, None) => Event::ProcessStarted { process },
            (kind::EXECUTED, None) => Event::ProcessExecuted { process },
            (kind::EXITED, None) => Event::ProcessExited {
                process,
                exit_status: ExitStatus::from_raw(record.exit_status),
            },
            (kind::MEMORY_THRESHOLD, None) => Event::MemoryThreshold {
                process,
                resident_bytes: record.resident_pages * self.page_bytes,
            },
            (kind::OOM_KILLED, None) => Event::OomKilled { process },
            _ => Event::Lost { events: 1 },
        }
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;
    use crate::{DiskClass, DiskOperation, task::TaskAbout};

    fn record(kind: u32, lost_before: u64) -> EventRecord {
        EventRecord {
            time_ns: 77,
            lost_before,
            about: TaskAbout {
                tgid: 5,
                process_start_ns: 50,
                flags: if kind == kind::EXITED { 1 << 1 } else { 0 },
                comm: *b"task\0\0\0\0\0\0\0\0\0\0\0\0",
                ..TaskAbout::zeroed()
            },
            resident_pages: 3,
            kind,
            exit_status: 7 << 8,
        }
    }

    fn decode(records: &[EventRecord]) -> Vec<Event> {
        let mut decoder = Decoder::new(4096);
        for each in records {
            decoder.record(bytemuck::bytes_of(each));
        }
        std::iter::from_fn(|| decoder.next()).collect()
    }

    #[test]
    fn every_kind_is_its_own() {
        let kinds =
            [kind::STARTED, kind::EXECUTED, kind::EXITED, kind::MEMORY_THRESHOLD, kind::OOM_KILLED];
        let events = decode(&kinds.map(|kind| record(kind, 0)));
        for event in &events {
            let process = event.process().unwrap();
            assert_eq!((process.time_ns, process.id.pid, process.id.start_time_ns), (77, 5, 50));
            assert_eq!(process.info.comm, "task");
            assert_eq!(process.info.exited, matches!(event, Event::ProcessExited { .. }));
        }
        assert!(matches!(events[0], Event::ProcessStarted { .. }));
        assert!(matches!(events[1], Event::ProcessExecuted { .. }));
        let Event::ProcessExited { exit_status, .. } = events[2] else { panic!("{events:?}") };
        assert_eq!(exit_status.code(), Some(7));
        let Event::MemoryThreshold { resident_bytes, .. } = events[3] else {
            panic!("{events:?}")
        };
        assert_eq!(resident_bytes, 3 * 4096);
        assert!(matches!(events[4], Event::OomKilled { .. }));
    }

    #[test]
    fn slow_io_is_told_of_whom_it_is_charged_to() {
        let slow = |tgid, class| {
            let mut event = record(kind::SLOW_IO, 2);
            event.about.tgid = tgid;
            let (device, operation, padding) = (8 << 20 | 3, 1, 0);
            let (queue_ns, device_ns, bytes) = (20, 300, 4096);
            SlowIoRecord { event, queue_ns, device_ns, bytes, device, class, operation, padding }
        };
        let mut decoder = Decoder::new(4096);
        decoder.record(bytemuck::bytes_of(&slow(5, 1)));
        decoder.record(bytemuck::bytes_of(&slow(0, 6)));
        let told: Vec<_> = std::iter::from_fn(|| decoder.next()).collect();
        let [Event::Lost { events: 2 }, known, unknown] = told.as_slice() else {
            panic!("{told:?}")
        };
        let Event::SlowIo { process: Some(process), io } = known else { panic!("{known:?}") };
        assert_eq!((process.id.pid, process.time_ns), (5, 77));
        assert_eq!((io.device.major, io.device.minor, io.bytes), (8, 3, 4096));
        assert_eq!((io.operation, io.class), (DiskOperation::Write, Some(DiskClass::WriteBack)));
        assert_eq!((io.queue_time.as_nanos(), io.device_time.as_nanos()), (20, 300));
        let Event::SlowIo { process: None, io } = unknown else { panic!("{unknown:?}") };
        assert_eq!(io.class, None);
        // of a kind without its record, and the other way round
        assert_eq!(decode(&[record(kind::SLOW_IO, 0)]), [Event::Lost { events: 1 }]);
        let mut wrong = slow(5, 1);
        (wrong.event.kind, wrong.event.lost_before) = (kind::STARTED, 2);
        decoder.record(bytemuck::bytes_of(&wrong));
        assert_eq!(decoder.next(), Some(Event::Lost { events: 1 }));
    }

    #[test]
    fn what_was_lost_is_told_once_and_where_it_is_missing() {
        let lost = [0, 4, 3, 4, 9].map(|lost| record(kind::STARTED, lost));
        let told: Vec<_> = (decode(&lost).iter())
            .map(|event| match event {
                Event::Lost { events } => *events,
                _ => 0,
            })
            .collect();
        assert_eq!(told, [0, 4, 0, 0, 0, 5, 0]);
    }

    #[test]
    fn records_that_are_not_understood_are_lost() {
        assert_eq!(decode(&[record(99, 0)]), [Event::Lost { events: 1 }]);
        let mut decoder = Decoder::new(4096);
        decoder.record(&[0; 9]);
        assert_eq!(decoder.next(), Some(Event::Lost { events: 1 }));
    }
}
