//! Intervals as a `Stream`.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::{FusedStream, Stream};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, Sleep, sleep_until},
};

use crate::{Error, ErrorKind, Interval, Probe, Result, stream::Ticks};

/// The intervals of a probe, as a [`Stream`] without end (feature `tokio`).
///
/// Reads run on tokio's blocking threads, so that a machine with many processes does
/// not hold up other tasks. A consumer that comes late gets one longer interval:
/// nothing is lost and nothing counted twice, and nothing is lost when the future of
/// an item is dropped (as by `select!`): the stream keeps what it has begun. An error
/// is an item; the interval then goes on.
///
/// Dropping the stream detaches the probe, at the end of a read that is under way;
/// [`into_inner`](IntervalStream::into_inner) gives it back.
///
/// ```no_run
/// use std::{future::poll_fn, pin::Pin, time::Duration};
/// use ebpfmetrics::{CpuProbe, Probe};
/// use futures_core::Stream;
///
/// # async fn run() -> ebpfmetrics::Result<()> {
/// let mut seconds = CpuProbe::builder().load()?.stream(Duration::from_secs(1));
/// // or `seconds.next()` of the crates futures and tokio-stream
/// while let Some(interval) = poll_fn(|cx| Pin::new(&mut seconds).poll_next(cx)).await {
///     println!("{:?} of CPU time", interval?.snapshot.total().cpu_time);
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping it detaches the probe"]
pub struct IntervalStream<P: Probe> {
    state: State<P>,
    ticks: Ticks<Instant>,
    sleep: Pin<Box<Sleep>>,
}

enum State<P: Probe> {
    /// Until the interval is over.
    Waiting(P),
    Reading(JoinHandle<(P, Result<P::Snapshot>)>, u64),
    /// A read has panicked.
    Lost,
}

impl<P: Probe> IntervalStream<P> {
    /// # Panics
    /// Outside of a runtime with time enabled.
    pub(crate) fn new(probe: P, every: Duration) -> Self {
        let ticks = Ticks::new(Instant::now(), every);
        let sleep = Box::pin(sleep_until(ticks.next()));
        Self { state: State::Waiting(probe), ticks, sleep }
    }

    /// The probe, in the interval that has begun, and the interval before, if a read of
    /// it was under way: waits for that.
    ///
    /// # Errors
    /// Where a read has panicked.
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
    Error::new(ErrorKind::System, "a read of the probe has panicked; the probe is detached")
}

fn panicked(error: tokio::task::JoinError) -> Error {
    lost().with_source(error)
}

impl<P: Probe + Unpin> Stream for IntervalStream<P> {
    type Item = Result<Interval<P::Snapshot>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            match std::mem::replace(&mut this.state, State::Lost) {
                State::Waiting(mut probe) => {
                    if this.sleep.as_mut().poll(cx).is_pending() {
                        this.state = State::Waiting(probe);
                        return Poll::Pending;
                    }
                    let missed = this.ticks.serve(Instant::now());
                    let read = spawn_blocking(move || {
                        let snapshot = probe.reset();
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

impl<P: Probe + Unpin> FusedStream for IntervalStream<P> {
    fn is_terminated(&self) -> bool {
        matches!(self.state, State::Lost)
    }
}

impl<P: Probe> std::fmt::Debug for IntervalStream<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IntervalStream").field("ticks", &self.ticks).finish_non_exhaustive()
    }
}
