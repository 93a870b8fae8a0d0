use std::{
    fmt,
    future::Future as _,
    mem,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::{FusedStream, Stream};
use tokio::{
    task::{JoinError, JoinHandle, spawn_blocking},
    time::{Instant, Sleep, sleep_until},
};

use super::{EndWindow, Interval, ticks::Ticks};
use crate::error::{Error, ErrorKind, Result};

/// Intervals of a probe, as a [`Stream`] that never ends (feature `tokio`).
///
/// The probe is read on tokio's blocking threads, so a long read does not delay other
/// tasks. Loading a probe blocks too: build it in [`spawn_blocking`].
///
/// A consumer that is late gets one longer interval: nothing is lost and nothing is
/// counted twice. Dropping the future of an item (as `select!` does) loses nothing either,
/// because the stream keeps a read that it has begun. If a read fails, the item is an
/// error and the window stays open until the next tick. The stream ends only after a read
/// has panicked.
///
/// Dropping the stream detaches the probe. If a read is in progress, that happens when it
/// is finished. [`into_inner`](IntervalStream::into_inner) returns the probe.
///
/// ```no_run
/// use std::{future::poll_fn, pin::Pin, time::Duration};
/// use ebpfmetrics::Probe;
/// use futures_core::Stream;
///
/// async fn print_intervals<P: Probe>(
///     load: impl FnOnce() -> ebpfmetrics::Result<P> + Send + 'static,
/// ) -> ebpfmetrics::Result<()> {
///     let probe = tokio::task::spawn_blocking(load).await.expect("loading does not panic")?;
///     let mut seconds = probe.stream(Duration::from_secs(1));
///     // or `seconds.next()` with the crate futures or tokio-stream
///     while let Some(interval) = poll_fn(|cx| Pin::new(&mut seconds).poll_next(cx)).await {
///         println!("{} ticks missed", interval?.missed_ticks);
///     }
///     Ok(())
/// }
/// ```
#[must_use = "dropping it detaches the probe"]
pub struct IntervalStream<P: EndWindow> {
    state: State<P>,
    ticks: Ticks<Instant>,
    sleep: Pin<Box<Sleep>>,
}

enum State<P: EndWindow> {
    /// Waits for the end of the interval.
    Waiting(P),
    /// Reads the probe. The number is that of missed ticks.
    Reading(JoinHandle<(P, Result<P::Snapshot>)>, u64),
    /// A read has panicked.
    Lost,
}

// The probe is moved between threads and is never pinned.
impl<P: EndWindow> Unpin for IntervalStream<P> {}

impl<P: EndWindow> IntervalStream<P> {
    /// Starts the first interval.
    ///
    /// # Panics
    /// If the interval is zero, or outside of a tokio runtime with time enabled.
    pub fn new(probe: P, every: Duration) -> Self {
        let ticks = Ticks::new(Instant::now(), every);
        let sleep = Box::pin(sleep_until(ticks.next()));
        Self { state: State::Waiting(probe), ticks, sleep }
    }

    /// Returns the probe. Its current window stays open. If a read is in progress, waits
    /// for it and returns its interval too.
    ///
    /// # Errors
    /// Fails if a read has panicked.
    pub async fn into_inner(self) -> Result<(P, Option<Result<Interval<P::Snapshot>>>)> {
        match self.state {
            State::Waiting(probe) => Ok((probe, None)),
            State::Reading(read, missed_ticks) => {
                let (probe, snapshot) = read.await.map_err(panicked)?;
                Ok((probe, Some(snapshot.map(|snapshot| Interval { snapshot, missed_ticks }))))
            }
            State::Lost => Err(lost()),
        }
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::System, "reading the probe panicked; the probe is detached")
}

fn panicked(error: JoinError) -> Error {
    lost().with_source(error)
}

impl<P: EndWindow> Stream for IntervalStream<P> {
    type Item = Result<Interval<P::Snapshot>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            match mem::replace(&mut this.state, State::Lost) {
                State::Waiting(mut probe) => {
                    if this.sleep.as_mut().poll(cx).is_pending() {
                        this.state = State::Waiting(probe);
                        return Poll::Pending;
                    }
                    let missed = this.ticks.advance(Instant::now());
                    let read = spawn_blocking(move || {
                        let snapshot = probe.end_window();
                        (probe, snapshot)
                    });
                    this.state = State::Reading(read, missed);
                }
                State::Reading(mut read, missed_ticks) => match Pin::new(&mut read).poll(cx) {
                    Poll::Pending => {
                        this.state = State::Reading(read, missed_ticks);
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok((probe, snapshot))) => {
                        this.sleep.as_mut().reset(this.ticks.next());
                        this.state = State::Waiting(probe);
                        let item = snapshot.map(|snapshot| Interval { snapshot, missed_ticks });
                        return Poll::Ready(Some(item));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(panicked(error)))),
                },
                State::Lost => return Poll::Ready(None),
            }
        }
    }
}

impl<P: EndWindow> FusedStream for IntervalStream<P> {
    fn is_terminated(&self) -> bool {
        matches!(self.state, State::Lost)
    }
}

impl<P: EndWindow> fmt::Debug for IntervalStream<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntervalStream").field("ticks", &self.ticks).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, marker::PhantomPinned};

    use super::*;

    /// Counts its windows, and panics at the end of the third.
    struct Windows(u32, PhantomPinned);

    impl EndWindow for Windows {
        type Snapshot = u32;

        fn end_window(&mut self) -> Result<u32> {
            self.0 += 1;
            assert!(self.0 < 3, "the third window");
            Ok(self.0)
        }
    }

    fn stream() -> IntervalStream<Windows> {
        IntervalStream::new(Windows(0, PhantomPinned), Duration::from_millis(2))
    }

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(test);
    }

    async fn next(stream: &mut IntervalStream<Windows>) -> Option<Result<Interval<u32>>> {
        poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
    }

    #[test]
    fn each_interval_ends_a_window() {
        run(async {
            let mut stream = stream();
            assert_eq!(next(&mut stream).await.unwrap().unwrap().snapshot, 1);
            assert_eq!(next(&mut stream).await.unwrap().unwrap().snapshot, 2);
            let (windows, interval) = stream.into_inner().await.unwrap();
            assert!(windows.0 == 2 && interval.is_none());
        });
    }

    #[test]
    fn a_read_in_progress_is_not_lost() {
        run(async {
            let mut stream = stream();
            while !matches!(stream.state, State::Reading(..)) {
                let poll = |cx: &mut Context<'_>| {
                    let _ = Pin::new(&mut stream).poll_next(cx);
                    Poll::Ready(())
                };
                poll_fn(poll).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
                if let State::Waiting(windows) = &stream.state
                    && windows.0 > 0
                {
                    return; // the read was faster than this test
                }
            }
            let (windows, interval) = stream.into_inner().await.unwrap();
            assert_eq!((windows.0, interval.unwrap().unwrap().snapshot), (1, 1));
        });
    }

    #[test]
    fn a_panic_ends_the_stream() {
        run(async {
            let mut stream = stream();
            for _ in 0..2 {
                assert!(next(&mut stream).await.unwrap().is_ok() && !stream.is_terminated());
            }
            let error = next(&mut stream).await.unwrap().unwrap_err();
            assert!(error.to_string().contains("panicked"), "{error}");
            assert!(stream.is_terminated() && next(&mut stream).await.is_none());
            assert!(stream.into_inner().await.is_err());
        });
    }
}
