use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::{FusedStream, Stream};
use tokio::io::{Interest, unix::AsyncFd};

use super::{Event, Events};
use crate::error::{Error, ErrorKind, Result};

/// [`Events`] as a [`Stream`] that never ends (feature `tokio`).
///
/// The runtime waits for the descriptor. Reading makes no system call. Dropping the future of
/// an item (as `select!` does) loses nothing.
///
/// Dropping the stream detaches the programs. [`into_inner`](EventStream::into_inner)
/// returns the events.
///
/// ```no_run
/// use std::{future::poll_fn, pin::Pin};
/// use ebpfmetrics::Events;
/// use futures_core::Stream;
///
/// # async fn run() -> ebpfmetrics::Result<()> {
/// let mut events = Events::builder().started(true).load()?.stream()?;
/// // or `events.next()` with the crate futures or tokio-stream
/// while let Some(event) = poll_fn(|cx| Pin::new(&mut events).poll_next(cx)).await {
///     println!("{:?}", event?);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping it detaches the programs"]
pub struct EventStream(AsyncFd<Events>);

impl EventStream {
    pub(super) fn new(events: Events) -> Result<Self> {
        #[allow(
            deprecated,
            reason = "its replacement in tokio 1.54 is unsafe, for types that change their \
                      descriptor; this one does not"
        )]
        AsyncFd::with_interest(events, Interest::READABLE).map(Self).map_err(failed)
    }

    /// Returns the events, to read them in another way.
    pub fn into_inner(self) -> Events {
        self.0.into_inner()
    }

    /// The events, for their losses, health and cost.
    pub fn get_ref(&self) -> &Events {
        self.0.get_ref()
    }
}

fn failed(error: std::io::Error) -> Error {
    let text = "events: the runtime cannot wait for the buffer";
    Error::new(ErrorKind::System, text).with_source(error)
}

impl Stream for EventStream {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let mut ready = match ready!(self.0.poll_read_ready_mut(cx)) {
                Ok(ready) => ready,
                Err(error) => return Poll::Ready(Some(Err(failed(error)))),
            };
            if let Some(event) = ready.get_inner_mut().next() {
                return Poll::Ready(Some(Ok(event)));
            }
            ready.clear_ready();
        }
    }
}

impl FusedStream for EventStream {
    fn is_terminated(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_stream_needs_no_pinning() {
        fn movable<T: Unpin + Send>() {}
        movable::<super::EventStream>();
    }
}
