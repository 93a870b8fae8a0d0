//! What happens to processes, reported at the moment it happens.
//!
//! [`Events`] is for programs that have to react at once. To measure what processes use, a
//! [probe](crate::Probe) is exact and costs nothing per event.

mod decode;
mod event;
mod options;
mod ring;
mod slow_io;
mod source;
#[cfg(feature = "tokio")]
mod stream;

#[cfg(feature = "tokio")]
pub use self::stream::EventStream;
pub use self::{
    event::{Event, ProcessEvent},
    options::EventsBuilder,
    source::Events,
};
