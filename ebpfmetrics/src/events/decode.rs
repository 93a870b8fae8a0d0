//! From records to events, without access to the system.

use std::{collections::VecDeque, os::unix::process::ExitStatusExt as _, process::ExitStatus};

use super::{Event, ProcessEvent, slow_io};
use crate::{
    process::ProcessState,
    record::{
        EventsEventRecord, EventsSlowIoRecord, event_kind, events_flags::EVENT_PROCESS_ENDED,
    },
};

/// Events that were read but not returned yet, and the number of lost events so far.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    page_bytes: u64,
    lost: u64,
    events: VecDeque<Event>,
}

impl Decoder {
    pub(super) fn new(page_bytes: u64) -> Self {
        Self { page_bytes, ..Self::default() }
    }

    pub(super) fn next(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Takes a record.
    pub(super) fn record(&mut self, record: &[u8]) {
        let event = if let Ok(record) = bytemuck::try_pod_read_unaligned(record) {
            let record: EventsSlowIoRecord = record;
            self.lost(record.event.lost_before);
            (record.event.kind == event_kind::SLOW_IO).then(|| slow_io::event(&record))
        } else if let Ok(record) = bytemuck::try_pod_read_unaligned(record) {
            let record: EventsEventRecord = record;
            self.lost(record.lost_before);
            self.event(&record)
        } else {
            None
        };
        // a record that is not understood is an event that the caller does not get
        self.events.push_back(event.unwrap_or(Event::Lost { events: 1 }));
    }

    /// Takes the number of events that found no room until here.
    pub(super) fn lost(&mut self, total: u64) {
        // records of several CPUs may cross: a loss that was reported stays reported
        if let Some(events @ 1..) = total.checked_sub(self.lost) {
            self.lost = total;
            self.events.push_back(Event::Lost { events });
        }
    }

    fn event(&self, record: &EventsEventRecord) -> Option<Event> {
        let process = process(record);
        Some(match record.kind {
            event_kind::STARTED => Event::ProcessStarted { process },
            event_kind::EXECUTED => Event::ProcessExecuted { process },
            event_kind::EXITED => Event::ProcessExited {
                process,
                exit_status: ExitStatus::from_raw(record.exit_status),
            },
            event_kind::MEMORY_THRESHOLD => Event::MemoryThreshold {
                process,
                resident_bytes: record.resident_pages * self.page_bytes,
            },
            event_kind::OOM_KILLED => Event::OomKilled { process },
            _ => return None,
        })
    }
}

pub(super) fn process(record: &EventsEventRecord) -> ProcessEvent {
    let mut info = record.process.info();
    if record.flags & u64::from(EVENT_PROCESS_ENDED) != 0 {
        (info.exited, info.state) = (true, ProcessState::Dead);
    }
    ProcessEvent { time_ns: record.time_ns, id: record.process.id(), info }
}

#[cfg(test)]
pub(super) mod tests {
    use bytemuck::Zeroable;

    use super::*;
    use crate::record::ProcessInfoRecord;

    pub(in super::super) fn record(kind: u32, lost_before: u64) -> EventsEventRecord {
        EventsEventRecord {
            time_ns: 77,
            lost_before,
            process: ProcessInfoRecord {
                tgid: 5,
                process_start_ns: 50,
                comm: *b"task\0\0\0\0\0\0\0\0\0\0\0\0",
                ..ProcessInfoRecord::zeroed()
            },
            resident_pages: 3,
            flags: if kind == event_kind::EXITED { EVENT_PROCESS_ENDED.into() } else { 0 },
            kind,
            exit_status: 7 << 8,
        }
    }

    fn decode(records: &[EventsEventRecord]) -> Vec<Event> {
        let mut decoder = Decoder::new(4096);
        for each in records {
            decoder.record(bytemuck::bytes_of(each));
        }
        std::iter::from_fn(|| decoder.next()).collect()
    }

    #[test]
    fn each_kind_has_its_event() {
        use event_kind::{EXECUTED, EXITED, MEMORY_THRESHOLD, OOM_KILLED, STARTED};
        let kinds = [STARTED, EXECUTED, EXITED, MEMORY_THRESHOLD, OOM_KILLED];
        let events = decode(&kinds.map(|kind| record(kind, 0)));
        for event in &events {
            let process = event.process().unwrap();
            assert_eq!((process.time_ns, process.id.pid, process.id.start_time_ns), (77, 5, 50));
            assert_eq!(process.info.comm, "task");
            let exited = matches!(event, Event::ProcessExited { .. });
            assert_eq!(process.info.exited, exited);
            assert_eq!(process.info.state == ProcessState::Dead, exited);
        }
        assert!(matches!(events[0], Event::ProcessStarted { .. }));
        assert!(matches!(events[1], Event::ProcessExecuted { .. }));
        let Event::ProcessExited { exit_status, .. } = events[2] else { panic!("{events:?}") };
        assert_eq!(exit_status.code(), Some(7));
        let Event::MemoryThreshold { resident_bytes, .. } = events[3] else { panic!("{events:?}") };
        assert_eq!(resident_bytes, 3 * 4096);
        assert!(matches!(events[4], Event::OomKilled { .. }));
    }

    #[test]
    fn losses_are_reported_once_and_at_their_place() {
        let records = [0, 4, 3, 4, 9].map(|lost| record(event_kind::STARTED, lost));
        let lost: Vec<_> = (decode(&records).iter())
            .map(|event| match event {
                Event::Lost { events } => *events,
                _ => 0,
            })
            .collect();
        assert_eq!(lost, [0, 4, 0, 0, 0, 5, 0]);
    }

    #[test]
    fn records_that_are_not_understood_are_lost() {
        assert_eq!(decode(&[record(99, 0)]), [Event::Lost { events: 1 }]);
        let mut decoder = Decoder::new(4096);
        decoder.record(&[0; 9]);
        assert_eq!(decoder.next(), Some(Event::Lost { events: 1 }));
    }
}
