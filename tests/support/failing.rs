//! A probe whose reads fail on request.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use ebpfmetrics::{
    Error, ErrorKind, Kernel, ProcessId, Result, Usage,
    kit::{
        Collector, Loading, NoLoss, Object, ProbeBuilder, Read, Readings, Requirements, SetOptions,
        Span, WalkTimes,
    },
    snapshot::Source,
};

/// The builder of the probe, and its switch.
#[derive(Clone, Debug, Default)]
pub struct Failing(Arc<AtomicU8>);

/// Where a [`Failing`] probe fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailAt {
    Nowhere = 0,
    Attach = 1,
    BeginWalk = 2,
    EndWalk = 3,
}

impl Failing {
    pub fn fail_at(&self, place: FailAt) {
        self.0.store(place as u8, Ordering::Relaxed);
    }

    fn pass(&self, place: FailAt) -> Result<()> {
        match self.0.load(Ordering::Relaxed) == place as u8 {
            true => Err(Error::new(ErrorKind::System, "on purpose")),
            false => Ok(()),
        }
    }
}

impl ProbeBuilder for Failing {
    type Collector = Self;

    fn set_options(&mut self) -> Option<&mut SetOptions> {
        None
    }
}

/// The usage of a probe that measures nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoUsage;

impl std::ops::AddAssign<&Self> for NoUsage {
    fn add_assign(&mut self, _: &Self) {}
}

impl Usage for NoUsage {
    fn since(&self, _: &Self) -> Self {
        Self
    }
}

impl Collector for Failing {
    const NAME: &'static str = "failing";

    type Options = Self;
    type Counters = ();
    type Gauges = ();
    type Usage = NoUsage;
    type System = ();
    type Loss = NoLoss;

    fn requirements() -> Requirements {
        Requirements::default()
    }

    fn load(options: Self, _: &Loading<'_>) -> Result<Self> {
        Ok(options)
    }

    fn attach(&mut self, _: &Kernel) -> Result<()> {
        self.pass(FailAt::Attach)
    }

    fn object(&self) -> Option<&Object> {
        None
    }

    fn object_mut(&mut self) -> Option<&mut Object> {
        None
    }

    fn begin_walk(&mut self, _: Read) -> Result<()> {
        self.pass(FailAt::BeginWalk)
    }

    fn end_walk(&mut self, _: &WalkTimes, _: &mut Readings<'_, Self>) -> Result<()> {
        self.pass(FailAt::EndWalk)
    }

    fn usage(&self, _: ProcessId, _: &(), _: Option<&()>, _: Span) -> NoUsage {
        NoUsage
    }

    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }
}
