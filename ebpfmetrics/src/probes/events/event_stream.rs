//! Events as a `Stream`.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use tokio::io::{Interest, unix::AsyncFd};

use super::{Event, Events};
use crate::{Error, ErrorKind, Result};

/// [`Events`] as a [`Stream`] without end (feature `tokio`).
///
/// The runtime waits for the descriptor; reading takes no system call. Nothing is lost
/// when the future of an item is dropped (as by `select!`).
///
/// Dropping the stream detaches the programs; [`into_inner`](EventStream::into_inner) gives
/// the events back.
///
/// ```no_run
/// use std::{future::poll_fn, pin::Pin};
/// use ebpfmetrics::Events;
/// use futures_core::Stream;
///
/// # async fn run() -> ebpfmetrics::Result<()> {
/// let mut events = Events::builder().started(true).load()?.stream()?;
/// // or `events.next()` of the crates futures and tokio-stream
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
        #[allow(deprecated, reason = "what came instead in tokio 1.54 is unsafe, for types that \
                                      change their descriptor: this one does not")]
        AsyncFd::with_interest(events, Interest::READABLE).map(Self).map_err(failed)
    }

    /// The events, to be read otherwise.
    pub fn into_inner(self) -> Events {
        self.0.into_inner()
    }

    /// The events, to ask for losses, health and cost.
    pub fn get_ref(&self) -> &Events {
        self.0.get_ref()
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::new(ErrorKind::System, "events: the runtime cannot wait for the buffer")
        .with_source(error)
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
