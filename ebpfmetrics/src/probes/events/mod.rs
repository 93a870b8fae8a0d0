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
pub use source::{Events, EventsBuilder};
