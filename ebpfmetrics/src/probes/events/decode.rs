//! From records to events. Pure: no system access.

use std::{collections::VecDeque, os::unix::process::ExitStatusExt as _, process::ExitStatus};

use super::{
    Event, ProcessEvent,
    record::{EventRecord, kind},
};
use crate::ProcessInfo;

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
        match bytemuck::try_pod_read_unaligned::<EventRecord>(record) {
            Ok(record) => {
                self.lost(record.lost_before);
                self.next.push_back(self.event(&record));
            }
            // a record that is not as expected is not told either
            Err(_) => self.next.push_back(Event::Lost { events: 1 }),
        }
    }

    /// Takes in how many events found no room until here.
    pub(super) fn lost(&mut self, total: u64) {
        // Records of several CPUs may cross: what has been told is not taken back.
        if let Some(events @ 1..) = total.checked_sub(self.lost) {
            self.lost = total;
            self.next.push_back(Event::Lost { events });
        }
    }

    fn event(&self, record: &EventRecord) -> Event {
        let exited = record.kind == kind::EXITED;
        let process = ProcessEvent {
            time_ns: record.time_ns,
            id: record.about.process(),
            info: ProcessInfo { exited, ..record.about.info() },
        };
        match record.kind {
            kind::STARTED => Event::ProcessStarted { process },
            kind::EXECUTED => Event::ProcessExecuted { process },
            kind::EXITED => Event::ProcessExited {
                process,
                exit_status: ExitStatus::from_raw(record.exit_status),
            },
            kind::MEMORY_THRESHOLD => Event::MemoryThreshold {
                process,
                resident_bytes: record.resident_pages * self.page_bytes,
            },
            kind::OOM_KILLED => Event::OomKilled { process },
            _ => Event::Lost { events: 1 },
        }
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;
    use crate::task::TaskAbout;

    fn record(kind: u32, lost_before: u64) -> EventRecord {
        EventRecord {
            time_ns: 77,
            lost_before,
            about: TaskAbout {
                tgid: 5,
                process_start_ns: 50,
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
