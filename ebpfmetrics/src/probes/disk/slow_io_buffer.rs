use std::sync::Arc;

use crate::{
    error::Result,
    object::{MapHandle, Object},
};

/// The maps that slow I/O events are sent to: a ring buffer, and the events that found no
/// room. Holding it is the right to read the ring buffer, which can have only one reader.
#[derive(Debug)]
pub(crate) struct SlowIoBuffer {
    #[allow(dead_code, reason = "for the events")]
    pub(crate) ring: MapHandle,
    #[allow(dead_code, reason = "for the events")]
    pub(crate) lost: MapHandle,
}

impl SlowIoBuffer {
    pub(super) fn of(object: &Object) -> Result<Arc<Self>> {
        let (ring, lost) = (object.map_handle("events_ring")?, object.map_handle("events_lost")?);
        Ok(Arc::new(Self { ring, lost }))
    }
}
