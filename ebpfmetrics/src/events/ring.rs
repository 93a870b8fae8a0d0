//! The buffer of events: the user side of `bpf/events/ring.h`.

use std::{any::Any, sync::Arc};

use crate::{object::MapHandle, record::event_kind};

/// Maps that objects write events to.
pub(super) const RING: &str = "events_ring";
pub(super) const LOST: &str = "events_lost";

/// Names of the kinds of events, in the order of `enum event_kind`.
pub(super) const KINDS: [&str; event_kind::COUNT as usize] =
    ["started", "executed", "exited", "memory_threshold", "oom_killed", "slow_io"];

/// The buffer of a disk probe that reports slow I/O. It is then the buffer of all events, so
/// that one reader gets them all in order.
pub(crate) struct SlowIoBuffer {
    /// Handles of `events_ring` and `events_lost`.
    pub(crate) maps: Vec<MapHandle>,
    /// Held as long as the buffer is read here: a ring buffer can have only one reader.
    pub(crate) reader: Arc<dyn Any + Send + Sync>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_names_of_the_object() {
        let in_object = crate::object::enumerators(ebpf_probes::EVENTS, "event_kind").unwrap();
        let name = |name: &String| name.strip_prefix("EVENT_KIND_").map(str::to_lowercase);
        let named: Vec<_> = in_object.iter().filter_map(|(it, _)| name(it)).collect();
        assert_eq!(named, KINDS);
    }
}
