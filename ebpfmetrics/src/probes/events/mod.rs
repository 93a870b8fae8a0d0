//! What happens to processes, told the moment it happens.

mod decode;
mod event;
#[cfg(feature = "tokio")]
mod event_stream;
mod record;
mod source;

pub use event::{Event, ProcessEvent};
#[cfg(feature = "tokio")]
pub use event_stream::EventStream;
pub(in crate::probes) use record::SlowIoRecord;
#[cfg(test)]
pub(in crate::probes) use record::{EventRecord, LostRecord};
pub(in crate::probes) use source::{BUFFER, BUFFER_BYTES, buffer_bytes};
pub use source::{Events, EventsBuilder};
