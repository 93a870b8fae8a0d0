//! A probe that measures nothing, and fails on request.

use std::{
    ops::AddAssign,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use crate::{
    error::{Error, ErrorKind, Result},
    kernel::Kernel,
    kit::{
        Collector, Loading, NoLoss, Object, ProbeBuilder, Read, Readings, Requirements, SetOptions,
        Span, WalkTimes,
    },
    process::ProcessId,
    snapshot::{Source, Usage},
};

pub(super) const FAILS: &str = "fails on purpose";

pub(super) const NEVER: u8 = 0;
pub(super) const LOAD: u8 = 1;
pub(super) const ATTACH: u8 = 2;
pub(super) const BEGIN_WALK: u8 = 3;
pub(super) const END_WALK: u8 = 4;

/// The builder of a bystander, and its switch: the place where it fails.
#[derive(Clone, Default)]
pub(super) struct Bystander(Arc<AtomicU8>);

impl Bystander {
    pub(super) fn fail_at(&self, place: u8) {
        self.0.store(place, Ordering::Relaxed);
    }

    fn pass(&self, place: u8) -> Result<()> {
        match self.0.load(Ordering::Relaxed) == place {
            true => Err(Error::new(ErrorKind::System, FAILS)),
            false => Ok(()),
        }
    }
}

impl ProbeBuilder for Bystander {
    type Collector = Self;

    fn set_options(&mut self) -> Option<&mut SetOptions> {
        None
    }
}

#[derive(Clone, Default)]
pub(super) struct Nothing;

impl AddAssign<&Self> for Nothing {
    fn add_assign(&mut self, _: &Self) {}
}

impl Usage for Nothing {
    fn since(&self, _: &Self) -> Self {
        Self
    }
}

impl Collector for Bystander {
    const NAME: &'static str = "bystander";

    type Options = Self;
    type Counters = ();
    type Gauges = ();
    type Usage = Nothing;
    type System = ();
    type Loss = NoLoss;

    fn requirements() -> Requirements {
        Requirements::default()
    }

    fn load(options: Self, _: &Loading<'_>) -> Result<Self> {
        options.pass(LOAD)?;
        Ok(options)
    }

    fn attach(&mut self, _: &Kernel) -> Result<()> {
        self.pass(ATTACH)
    }

    fn object(&self) -> Option<&Object> {
        None
    }

    fn object_mut(&mut self) -> Option<&mut Object> {
        None
    }

    fn begin_walk(&mut self, _: Read) -> Result<()> {
        self.pass(BEGIN_WALK)
    }

    fn end_walk(&mut self, _: &WalkTimes, _: &mut Readings<'_, Self>) -> Result<()> {
        self.pass(END_WALK)
    }

    fn usage(&self, _: ProcessId, _: &(), _: Option<&()>, _: Span) -> Nothing {
        Nothing
    }

    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }
}
