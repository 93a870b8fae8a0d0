use std::{
    any::Any,
    fmt, io, iter,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Event, EventsBuilder,
    decode::Decoder,
    ring::{KINDS, LOST, RING, SlowIoBuffer},
};
use crate::{
    collect::program_costs,
    error::{Error, ErrorKind, Result},
    kernel::{Requirements, wait_readable},
    object::{Object, Ring},
    probe::{Cost, Health},
    record::{EventsLoss, EventsLostRecord},
    snapshot::{Loss, LossScope, Losses},
};

/// Reports what happens to processes at the moment it happens: they start, execute, exit,
/// grow to a memory threshold, are killed because memory ran out, or wait long for a disk.
///
/// Events are for programs that have to react at once. To measure what processes use, a
/// [`Probe`](crate::Probe) is exact and costs nothing per event. Only events that are selected
/// in the [`EventsBuilder`] are reported.
///
/// * **Source**: the tracepoints `sched_process_fork`, `sched_process_exec`,
///   `sched_process_exit`, `sched_process_free` and `rss_stat`, through a ring buffer in
///   memory shared with the kernel; slow I/O from a [`DiskProbe`](crate::DiskProbe), which
///   follows every operation in any case.
/// * **Order**: the events of one process come in order.
/// * **Units**: times are ns of `CLOCK_MONOTONIC`.
/// * **Kernel**: Linux 5.10 with BTF.
/// * **Capabilities**: `CAP_BPF` and `CAP_PERFMON`, or root.
/// * **Errors**: as [`preflight`](crate::preflight()) reports in advance.
/// * **Kernel memory**: the buffer, and 2 MiB more if exits are reported.
/// * **Cost**: about 1 us per event, and up to 12 us if it wakes a waiting reader (measured in
///   a virtual machine). A reader that is behind is woken once.
/// * **Losses**: an event that finds no room in the buffer is counted, and its place in the
///   stream is reported ([`Event::Lost`]). [`losses`](Events::losses) has the totals by kind.
/// * **Scope**: all processes of the machine, or those of a set
///   ([`filter_of`](EventsBuilder::filter_of)), from loading on. A process that is above the
///   memory threshold already is reported when its page count changes next.
///
/// It starts no thread and no timer. Wait for the descriptor ([`AsFd`]) with any runtime and
/// [`drain`](Events::drain), or use [`wait`](Events::wait).
///
/// # Final usage of a process
/// Load the probes first and the events last. When [`Event::ProcessExited`] arrives, the
/// probes have the final usage of the process: see
/// [`final_usage`](crate::ProbeSet::final_usage).
///
/// ```no_run
/// use std::time::Duration;
/// use ebpfmetrics::{CpuProbe, Event, Events};
///
/// let cpu = CpuProbe::builder().load()?;
/// let mut events = Events::builder().started(true).exited(true).load()?;
/// while events.wait(Duration::from_secs(10))? {
///     for event in events.drain() {
///         match event {
///             Event::ProcessStarted { process } => println!("{} started", process.id),
///             Event::ProcessExited { process, exit_status } => {
///                 let used = cpu.final_usage(process.id)?.map(|usage| usage.cpu_time);
///                 println!("{} {}: {exit_status}, {used:?}", process.id, process.info.comm);
///             }
///             Event::Lost { events } => println!("{events} events lost"),
///             _ => {}
///         }
///     }
/// }
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
///
/// Dropping it detaches its programs and frees its maps.
#[must_use = "dropping it detaches its programs"]
pub struct Events {
    object: Object,
    ring: Ring,
    decoder: Decoder,
    /// The buffer of a disk probe, as long as it is read here.
    _reader: Option<Arc<dyn Any + Send + Sync>>,
}

impl Events {
    pub(crate) const NAME: &'static str = "events";

    /// Options, with no event selected.
    pub fn builder() -> EventsBuilder {
        EventsBuilder::default()
    }

    /// What all events together need of a machine.
    pub fn requirements() -> Requirements {
        let all = Self::builder().started(true).executed(true).exited(true).memory_threshold(1);
        all.requirements()
    }

    pub(super) fn new(object: Object, slow_io: Option<SlowIoBuffer>) -> Result<Self> {
        let ring = object.ring(RING)?;
        let decoder = Decoder::new(rustix::param::page_size() as u64);
        Ok(Self { object, ring, decoder, _reader: slow_io.map(|buffer| buffer.reader) })
    }

    /// Returns the events that have happened. It does not wait.
    ///
    /// The iterator ends when the buffer is empty, which may be late if events come faster
    /// than they are taken. Events that are not taken are returned the next time.
    pub fn drain(&mut self) -> impl Iterator<Item = Event> + '_ {
        iter::from_fn(|| self.next())
    }

    pub(super) fn next(&mut self) -> Option<Event> {
        if let Some(event) = self.decoder.next() {
            return Some(event);
        }
        let read = self.ring.next(|record| self.decoder.record(record));
        if read.is_none()
            && let Ok(lost) = self.lost()
        {
            // the last events before the buffer became empty may be among the lost
            self.decoder.lost(lost.all);
        }
        self.decoder.next()
    }

    fn lost(&self) -> Result<EventsLostRecord> {
        self.object.array_element(LOST, 0)
    }

    /// Waits with poll(2) until there is something to [`drain`](Self::drain). Returns false
    /// if nothing happened until the timeout.
    ///
    /// # Errors
    /// poll(2) fails.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool> {
        let start = Instant::now();
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            match wait_readable(self.as_fd(), left) {
                Ok(readable) => return Ok(readable),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let text = "events: waiting for the buffer failed";
                    return Err(Error::new(ErrorKind::System, text).with_source(error));
                }
            }
        }
    }

    /// The events as a `Stream` (feature `tokio`).
    ///
    /// # Errors
    /// The runtime cannot wait for the descriptor.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O enabled.
    #[cfg(feature = "tokio")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
    pub fn stream(self) -> Result<super::EventStream> {
        super::EventStream::new(self)
    }

    /// Events that were not reported since loading (with slow I/O: since the disk probe was
    /// loaded), by cause.
    ///
    /// `started`, `executed`, `exited`, `memory_threshold`, `oom_killed` and `slow_io` count
    /// events of that kind that found no room in the buffer; their sum is that of all
    /// [`Event::Lost`]. `above_table_full` counts crossings of the memory threshold while
    /// 8,192 other processes were above it.
    ///
    /// Exits that were reported with less information are no losses: see
    /// [`incomplete_exits`](Self::incomplete_exits).
    ///
    /// # Errors
    /// The kernel does not report it.
    pub fn losses(&self) -> Result<Losses> {
        let dropped = KINDS.into_iter().zip(self.lost()?.by_kind);
        let untracked = EventsLoss::AboveTableFull;
        let untracked = (untracked.as_str(), self.counter(untracked)?);
        let losses = dropped.chain([untracked]);
        Ok(losses
            .map(|(cause, count)| Loss::new(Self::NAME, cause, count, LossScope::Processes))
            .collect())
    }

    /// Number of [`Event::ProcessExited`] since loading that came without parent: the exit
    /// was before loading, or this machine hides it from eBPF. The time of such an event is
    /// that of the release. With a filter such exits are not reported and not counted, because
    /// only the exit shows whether a process is in the filter.
    ///
    /// # Errors
    /// The kernel does not report it.
    pub fn incomplete_exits(&self) -> Result<u64> {
        self.counter(EventsLoss::ExitStateMissing)
    }

    fn counter(&self, loss: EventsLoss) -> Result<u64> {
        let counters = self.object.losses("events_losses", EventsLoss::ALL.len())?;
        let known = EventsLoss::ALL.iter().zip(counters);
        Ok(known.filter(|(cause, _)| **cause == loss).map(|(_, count)| count).sum())
    }

    /// Resources that the events use in the kernel, without the buffer of a disk probe.
    ///
    /// # Errors
    /// The kernel does not report them.
    pub fn health(&self) -> Result<Health> {
        let (map_bytes, programs) = (self.object.map_bytes()?, self.object.program_count());
        Ok(Health { map_bytes, programs, degraded: Vec::new() })
    }

    /// How often the programs ran and how long they took, see
    /// [`Probe::cost`](crate::Probe::cost).
    ///
    /// # Errors
    /// The kernel does not report it.
    pub fn cost(&self) -> Result<Cost> {
        Ok(Cost { programs: program_costs(&self.object)? })
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("decoder", &self.decoder).finish_non_exhaustive()
    }
}
