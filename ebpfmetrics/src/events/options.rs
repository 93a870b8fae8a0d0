use std::fmt;

use super::{
    Events,
    ring::{RING, SlowIoBuffer},
};
use crate::{
    collect::{SharedFilter, handlers},
    error::{Error, ErrorKind, Result},
    kernel::{Kernel, Requirements, checks},
    object::{Object, ObjectLoader},
    options::{RING_BYTES, ring_bytes},
    process::CgroupHierarchy,
    set::ProbeSet,
};

/// Room for this many processes between exit and release.
const MAX_ENDING: u32 = 8192;

/// Selects the events that [`Events`] report; none by default.
#[derive(Default)]
#[must_use = "nothing is loaded until load()"]
pub struct EventsBuilder {
    started: bool,
    executed: bool,
    exited: bool,
    oom_kills: bool,
    memory_threshold: Option<u64>,
    filter: Option<SharedFilter>,
    cgroup_hierarchy: Option<CgroupHierarchy>,
    slow_io: Option<SlowIoBuffer>,
    buffer_bytes: Option<u32>,
}

impl EventsBuilder {
    /// Reports [`Event::ProcessStarted`](super::Event::ProcessStarted).
    pub fn started(mut self, report: bool) -> Self {
        self.started = report;
        self
    }

    /// Reports [`Event::ProcessExecuted`](super::Event::ProcessExecuted).
    pub fn executed(mut self, report: bool) -> Self {
        self.executed = report;
        self
    }

    /// Reports [`Event::ProcessExited`](super::Event::ProcessExited).
    pub fn exited(mut self, report: bool) -> Self {
        self.exited = report;
        self
    }

    /// Reports [`Event::OomKilled`](super::Event::OomKilled).
    pub fn oom_kills(mut self, report: bool) -> Self {
        self.oom_kills = report;
        self
    }

    /// Reports [`Event::MemoryThreshold`](super::Event::MemoryThreshold) for every process
    /// whose resident set grows to this many bytes.
    ///
    /// A program then runs whenever the kernel changes a page count.
    pub fn memory_threshold(mut self, resident_bytes: u64) -> Self {
        self.memory_threshold = Some(resident_bytes);
        self
    }

    /// Reports only the processes that pass the filter of a [`ProbeSet`] or of a single
    /// probe. Without this, events are those of all processes.
    ///
    /// The set keeps the list of processes up to date, so drop the events before the set: a
    /// process that starts later than that is not reported. Cgroup ids belong to the
    /// hierarchy of the set.
    ///
    /// ```no_run
    /// use ebpfmetrics::{CpuProbe, Events, Filter, ProbeSet};
    ///
    /// let filter = Filter::tree(std::process::id());
    /// let mut probes = ProbeSet::builder().filter(filter).build()?;
    /// let cpu = probes.add(CpuProbe::builder())?;
    /// let events = Events::builder().exited(true).filter_of(&probes).load()?;
    /// # Ok::<(), ebpfmetrics::Error>(())
    /// ```
    pub fn filter_of(mut self, probes: &impl AsRef<ProbeSet>) -> Self {
        self.filter = Some(probes.as_ref().shared_filter().clone());
        self
    }

    /// The hierarchy that cgroup ids belong to; [`CgroupHierarchy::mounted`] by default. With
    /// [`filter_of`](Self::filter_of) it is that of the set.
    pub fn cgroup_hierarchy(mut self, hierarchy: CgroupHierarchy) -> Self {
        self.cgroup_hierarchy = Some(hierarchy);
        self
    }

    /// Reads the buffer of a disk probe, which reports slow I/O.
    pub(crate) fn slow_io_buffer(mut self, buffer: SlowIoBuffer) -> Self {
        self.slow_io = Some(buffer);
        self
    }

    /// Size of the buffer, rounded up to a power of two of whole pages; 1 MiB by default. An
    /// event takes 128 bytes. With [`slow_io`](Self::slow_io) the size is
    /// [an option of the probe](crate::disk::DiskProbeBuilder::slow_io_buffer_bytes).
    pub fn buffer_bytes(mut self, bytes: u32) -> Self {
        self.buffer_bytes = Some(bytes);
        self
    }

    /// Loads and attaches the programs for the selected events.
    ///
    /// # Errors
    /// What the machine lacks, by [`ErrorKind`]; the text says how to fix it.
    /// [`ErrorKind::InvalidOption`] if no event is selected.
    pub fn load(self) -> Result<Events> {
        let kernel = Kernel::read();
        let kernel = kernel.map_err(|error| self.explain(error))?;
        self.load_on(&kernel)
    }

    /// As [`load`](Self::load), with the description of the kernel at hand.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_on(self, kernel: &Kernel) -> Result<Events> {
        self.check()?;
        let object = self.load_object(kernel).map_err(|error| self.explain(error))?;
        Events::new(object, self.slow_io)
    }

    fn load_object(&self, kernel: &Kernel) -> Result<Object> {
        handlers::require(Events::NAME, &self.requirements(), kernel)?;
        let page_bytes = rustix::param::page_size() as u64;
        let threshold_pages = self.memory_threshold.map_or(0, |bytes| bytes.div_ceil(page_bytes));
        let bytes = self.buffer_bytes.unwrap_or(RING_BYTES);
        let filter = match &self.filter {
            Some(filter) => filter.clone(),
            None => {
                let (_, number) = handlers::hierarchy(self.cgroup_hierarchy.as_ref(), kernel)?;
                SharedFilter::all(number)
            }
        };
        let mut loader = ObjectLoader::new(Events::NAME, ebpf_probes::EVENTS)
            .override_global("report_exited", u8::from(self.exited))
            .override_global("report_oom_kills", u8::from(self.oom_kills))
            .override_global("threshold_pages", threshold_pages)
            .override_global("rearm_pages", threshold_pages - threshold_pages / 8)
            .map_max_entries(RING, ring_bytes(Events::NAME, "buffer_bytes", bytes)?)
            .map_max_entries("events_ending", if self.exited { MAX_ENDING } else { 1 });
        if let Some(buffer) = &self.slow_io {
            loader = loader.reuse_maps(&buffer.maps);
        }
        let mut object = filter.configure(loader).load(kernel)?;
        for (program, tracepoint) in self.programs() {
            object.attach(program, tracepoint, kernel)?;
        }
        Ok(object)
    }

    fn check(&self) -> Result<()> {
        let invalid = |what| Error::new(ErrorKind::InvalidOption, format!("events: {what}"));
        if self.programs().next().is_none() && self.slow_io.is_none() {
            return Err(invalid("no event is selected"));
        }
        if self.memory_threshold == Some(0) {
            return Err(invalid("option memory_threshold must be at least 1, got 0"));
        }
        if self.buffer_bytes.is_some() && self.slow_io.is_some() {
            return Err(invalid(
                "with slow_io the buffer is that of the disk probe: set its size there",
            ));
        }
        if self.cgroup_hierarchy.is_some() && self.filter.is_some() {
            return Err(invalid(
                "with filter_of the cgroup hierarchy is that of the set: set it there",
            ));
        }
        Ok(())
    }

    /// Ends before starts: the end of a process whose start is reported is not missed.
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

    pub(super) fn requirements(&self) -> Requirements {
        let tracepoints = self.programs().map(|(_, tracepoint)| tracepoint).collect();
        Requirements { tracepoints, iterators: [].into() }
    }

    fn explain(&self, error: Error) -> Error {
        checks::explain(error, Events::NAME, &self.requirements())
    }
}

impl fmt::Debug for EventsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let programs: Vec<_> = self.programs().map(|(program, _)| program).collect();
        f.debug_struct("EventsBuilder").field("programs", &programs).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_options_are_refused_before_loading() {
        let text = |builder: EventsBuilder| {
            let error = builder.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
            error.to_string()
        };
        assert!(text(Events::builder()).contains("no event is selected"));
        assert!(text(Events::builder().memory_threshold(0)).contains("memory_threshold"));
        let buffer = || SlowIoBuffer { maps: Vec::new(), reader: std::sync::Arc::new(()) };
        assert!(Events::builder().slow_io_buffer(buffer()).check().is_ok());
        let resized = Events::builder().slow_io_buffer(buffer()).buffer_bytes(1);
        assert!(text(resized).contains("disk probe"));
        let filtered = || EventsBuilder { filter: Some(SharedFilter::all(-1)), ..all() };
        assert!(filtered().check().is_ok());
        assert!(text(filtered().cgroup_hierarchy(CgroupHierarchy::Unified)).contains("of the set"));
    }

    fn all() -> EventsBuilder {
        Events::builder().started(true).executed(true).exited(true).memory_threshold(1)
    }

    #[test]
    fn an_event_needs_only_its_own_hooks() {
        let hooks = |builder: EventsBuilder| builder.requirements().tracepoints;
        assert_eq!(hooks(Events::builder().started(true)), ["sched_process_fork"].into());
        assert_eq!(hooks(Events::builder().oom_kills(true)), ["sched_process_exit"].into());
        assert_eq!(hooks(all()), Events::requirements().tracepoints);
        assert_eq!(hooks(all()).len(), 5);
    }
}
