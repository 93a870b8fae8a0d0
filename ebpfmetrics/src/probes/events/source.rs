//! The driver: loads, attaches, reads.

use std::{
    iter,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Event,
    decode::Decoder,
    record::{self, LostRecord},
};
use crate::{
    Cost, DiskProbe, Error, ErrorKind, Health, Kernel, Losses, Requirements, Result,
    loader::{Loader, Object, Ring, SharedMaps},
    sys,
};

/// Tells what happens to processes the moment it happens: that they start, execute,
/// exit, hold more memory than a limit, are killed for want of memory, and that a disk
/// took longer for them than a limit.
///
/// For who has to act at once; for what processes used, a [`Probe`](crate::Probe) is
/// exact at no cost per event. Nothing is told unless
/// [`EventsBuilder`] is asked for it.
///
/// * **Where it comes from**: the tracepoints `sched_process_fork`,
///   `sched_process_exec`, `sched_process_exit`, `sched_process_free` and `rss_stat`,
///   through a ring buffer in memory that is shared with the kernel; slow I/O from a
///   [`DiskProbe`], which follows every operation anyhow.
/// * **Order**: what happened to one process comes in its order.
/// * **Units**: times are ns of `CLOCK_MONOTONIC`.
/// * **Kernel**: Linux 5.10 with BTF.
/// * **Capabilities**: `CAP_BPF` and `CAP_PERFMON`, or root.
/// * **Errors**: as [`preflight`](crate::preflight()) tells beforehand.
/// * **Kernel memory**: the buffer; 2 MiB more if exits are told.
/// * **Cost**: some 1 us per event, and up to 12 us where a reader waits and is woken
///   (measured in a virtual machine). Events that gather wake it once.
/// * **Losses**: what finds no room in the buffer is counted, and told in the stream
///   where it is missing ([`Event::Lost`]); [`losses`](Events::losses) has the totals, by
///   kind.
/// * **Scope**: all processes of the machine, and what happens from here on. A process
///   that holds more than the limit already is told at its next change.
///
/// There is no thread and no timer: wait for the descriptor ([`AsFd`]) with any runtime
/// and [`drain`](Events::drain), or [`wait`](Events::wait).
///
/// # Final totals of a process
/// Load the probes first and the events last. When [`Event::ProcessExited`] comes, the
/// probes have its final totals:
/// [`final_usage`](crate::kit::TaskProbe::final_usage), until the next snapshot, whose row
/// has them then.
///
/// Dropping it detaches its programs and frees its maps.
///
/// ```no_run
/// use std::time::Duration;
/// use ebpfmetrics::{CpuProbe, Event, Events, kit::TaskProbe};
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
#[must_use = "dropping it detaches its programs"]
pub struct Events {
    object: Object,
    ring: Ring,
    decoder: Decoder,
}

/// What [`Events`] are told.
#[must_use = "nothing is loaded until load()"]
pub struct EventsBuilder {
    started: bool,
    executed: bool,
    exited: bool,
    oom_kills: bool,
    memory_threshold: Option<u64>,
    /// The buffer of a disk probe.
    slow_io: Option<Arc<SharedMaps>>,
    buffer_bytes: Option<u32>,
}

/// What the maps are called that objects tell events into.
pub(in crate::probes) const BUFFER: &[&str] = &["ring", "lost"];

/// The buffer, unless a size is asked for.
pub(in crate::probes) const BUFFER_BYTES: u32 = 1 << 20;

/// The size of a buffer: a power of two of whole pages.
pub(in crate::probes) fn buffer_bytes(bytes: u32) -> Result<u32> {
    if !(1..=1 << 30).contains(&bytes) {
        let text = "events: a buffer has 1 to 1,073,741,824 bytes";
        return Err(Error::new(ErrorKind::InvalidOption, text));
    }
    Ok(bytes.next_power_of_two().max(rustix::param::page_size() as u32))
}

impl EventsBuilder {
    /// [`Event::ProcessStarted`].
    pub fn started(mut self, tell: bool) -> Self {
        self.started = tell;
        self
    }

    /// [`Event::ProcessExecuted`].
    pub fn executed(mut self, tell: bool) -> Self {
        self.executed = tell;
        self
    }

    /// [`Event::ProcessExited`].
    pub fn exited(mut self, tell: bool) -> Self {
        self.exited = tell;
        self
    }

    /// [`Event::OomKilled`].
    pub fn oom_kills(mut self, tell: bool) -> Self {
        self.oom_kills = tell;
        self
    }

    /// [`Event::MemoryThreshold`] of every process whose resident set grows to so many
    /// bytes.
    ///
    /// A program runs then whenever the kernel changes a page count, as it does for
    /// [`MemPeaks::Folded`](crate::MemPeaks).
    pub fn memory_threshold(mut self, resident_bytes: u64) -> Self {
        self.memory_threshold = Some(resident_bytes);
        self
    }

    /// [`Event::SlowIo`] of a probe that was loaded with
    /// [`slow_io`](crate::DiskProbeBuilder::slow_io): it has the buffer, which is then that
    /// of all events, so that one reader has them all.
    ///
    /// No program runs for it but those of the probe. It ends with the probe.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use ebpfmetrics::{DiskProbe, Events};
    ///
    /// let disk = DiskProbe::builder().slow_io(Duration::from_millis(100)).load()?;
    /// let mut events = Events::builder().slow_io(&disk)?.load()?;
    /// # Ok::<(), ebpfmetrics::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if the probe was loaded without, or if other `Events`
    /// read its buffer.
    pub fn slow_io(mut self, disk: &DiskProbe) -> Result<Self> {
        self.slow_io = Some(disk.events()?);
        Ok(self)
    }

    /// The size of the buffer, rounded up to a power of two of whole pages; 1 MiB unless
    /// set. An event takes 136 bytes. With [`slow_io`](Self::slow_io) the size is
    /// [that of the probe](crate::DiskProbeBuilder::slow_io_buffer_bytes).
    pub fn buffer_bytes(mut self, bytes: u32) -> Self {
        self.buffer_bytes = Some(bytes);
        self
    }

    /// Loads and attaches what is asked for.
    ///
    /// # Errors
    /// What is missing, by [`ErrorKind`], and what to do about it, in the text.
    pub fn load(self) -> Result<Events> {
        let kernel = Loader::kernel(Events::NAME, self.requirements())?;
        self.load_on(&kernel)
    }

    /// As [`load`](Self::load), with the description of the kernel at hand.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_on(self, kernel: &Kernel) -> Result<Events> {
        self.check()?;
        let page_bytes = rustix::param::page_size() as u64;
        let threshold_pages = self.memory_threshold.map_or(0, |bytes| bytes.div_ceil(page_bytes));
        let buffer_bytes = buffer_bytes(self.buffer_bytes.unwrap_or(BUFFER_BYTES))?;
        let loader = Loader::new(Events::NAME, self.requirements(), ebpf_probes::EVENTS)
            .global("tell_exited", u8::from(self.exited))
            .global("tell_oom_kills", u8::from(self.oom_kills))
            .global("threshold_pages", threshold_pages)
            .global("rearm_pages", threshold_pages - threshold_pages / 8)
            .entries("ring", buffer_bytes)
            .entries("ending", if self.exited { 8192 } else { 1 });
        let mut object = match &self.slow_io {
            Some(buffer) => loader.share(Arc::clone(buffer)).load(kernel)?,
            None => loader.load(kernel)?,
        };
        for (program, tracepoint) in self.programs() {
            object.attach(program, tracepoint, kernel)?;
        }
        let ring = object.ring("ring")?;
        Ok(Events { object, ring, decoder: Decoder::new(page_bytes) })
    }

    fn check(&self) -> Result<()> {
        let invalid = |what| Error::new(ErrorKind::InvalidOption, format!("events: {what}"));
        if self.programs().next().is_none() && self.slow_io.is_none() {
            return Err(invalid("none is asked for"));
        }
        if self.memory_threshold == Some(0) {
            return Err(invalid("memory_threshold is more than 0"));
        }
        if self.buffer_bytes.is_some() && self.slow_io.is_some() {
            return Err(invalid("with slow_io the buffer is that of the disk probe"));
        }
        Ok(())
    }

    /// Ends before starts: of who is told to have started, the end is not missed.
    fn programs(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let ends = self.exited || self.oom_kills || self.memory_threshold.is_some();
        [
            (self.exited, "events_free", "sched_process_free"),
            (ends, "events_exit", "sched_process_exit"),
            (self.memory_threshold.is_some(), "events_resident", "rss_stat"),
            (self.executed, "events_exec", "sched_process_exec"),
            (self.started, "events_fork", "sched_process_fork"),
        ]
        .into_iter()
        .filter_map(|(wanted, program, tracepoint)| wanted.then_some((program, tracepoint)))
    }

    fn requirements(&self) -> Requirements {
        let tracepoints = self.programs().map(|(_, tracepoint)| tracepoint).collect();
        Requirements { tracepoints, iterators: [].into() }
    }
}

impl Events {
    /// The stem of its source files.
    pub(crate) const NAME: &'static str = "events";

    /// Nothing is told at first.
    pub fn builder() -> EventsBuilder {
        EventsBuilder {
            started: false,
            executed: false,
            exited: false,
            oom_kills: false,
            memory_threshold: None,
            slow_io: None,
            buffer_bytes: None,
        }
    }

    /// What all kinds together need of a machine.
    pub fn requirements() -> Requirements {
        let all = Self::builder().started(true).executed(true).exited(true).memory_threshold(1);
        all.requirements()
    }

    /// Takes what is there, and does not wait.
    ///
    /// It ends when the buffer is empty; where events come faster than they are taken
    /// that may be late. What is not taken is there the next time.
    pub fn drain(&mut self) -> impl Iterator<Item = Event> + '_ {
        iter::from_fn(|| self.next())
    }

    pub(super) fn next(&mut self) -> Option<Event> {
        if let Some(event) = self.decoder.next() {
            return Some(event);
        }
        match self.ring.next(|record| self.decoder.record(record)) {
            Some(()) => {}
            // A figure that cannot be read is read the next time.
            None => self.decoder.lost(self.lost().map(|lost| lost.all).unwrap_or_default()),
        }
        self.decoder.next()
    }

    fn lost(&self) -> Result<LostRecord> {
        self.object.element("lost", 0)
    }

    /// Waits until there is something to [`drain`](Self::drain), by poll(2); false if
    /// there was nothing for so long.
    ///
    /// # Errors
    /// Where poll(2) fails.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool> {
        let start = Instant::now();
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            match sys::wait_readable(self.as_fd(), left) {
                Ok(readable) => return Ok(readable),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
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
    /// Where the runtime cannot take the descriptor.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O enabled.
    #[cfg(feature = "tokio")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
    pub fn stream(self) -> Result<super::EventStream> {
        super::EventStream::new(self)
    }

    /// What was not told since loading (of the disk probe, with slow I/O), by kind of
    /// event. `exit_state_missing` counts
    /// exits that were told without parent, user and cgroup: of processes that had
    /// exited before loading, or whose exit the machine hides.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn losses(&self) -> Result<Losses> {
        let lost = record::KINDS.iter().copied().zip(self.lost()?.by_kind);
        Ok(Losses::new(lost.chain(self.object.losses(record::LOSSES)?)))
    }

    /// What it takes of the kernel. With slow I/O the buffer is the disk probe's.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn health(&self) -> Result<Health> {
        self.object.health()
    }

    /// How often its programs ran and how long they took; see
    /// [`Probe::cost`](crate::Probe::cost).
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn cost(&self) -> Result<Cost> {
        self.object.cost()
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

impl std::fmt::Debug for EventsBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let programs: Vec<_> = self.programs().map(|(program, _)| program).collect();
        f.debug_struct("EventsBuilder").field("programs", &programs).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("decoder", &self.decoder).finish_non_exhaustive()
    }
}
