//! What a probe gets to load its object.

use bytemuck::NoUninit;

use super::filter::{Filter, SharedFilter};
use crate::{
    kernel::Kernel,
    object::{MapHandle, ObjectLoader},
};

/// The environment that a probe's object is loaded into: the kernel, and the filter of the
/// set.
pub struct Loading<'a> {
    /// Description of the running kernel.
    pub kernel: &'a Kernel,
    pub(super) filter: &'a SharedFilter,
    /// Number of the probe's section in a walk.
    pub(super) section: u16,
}

impl Loading<'_> {
    /// A loader for the probe's object. The filter works in the object's hooks, and the
    /// records of its walk program have the right section.
    pub fn object(&self, name: &'static str, bytes: &'static [u8]) -> ObjectLoader {
        let loader =
            ObjectLoader::new(name, bytes).override_global_if_present("own_section", self.section);
        self.filter.configure(loader)
    }

    /// Whether the set measures some processes only.
    pub(crate) fn has_filter(&self) -> bool {
        self.filter.filter != Filter::All
    }

    /// A process in the filter that does not count, see [`SharedFilter`].
    pub(crate) fn caller(&self) -> Option<u32> {
        self.filter.caller
    }
}

/// What a probe adds to the walk and to final records.
#[derive(Default)]
pub struct WalkPart {
    /// Constants of the object `process`, by name.
    pub(super) globals: Vec<(&'static str, Vec<u8>)>,
    /// Maps of the probe's object that the object `process` uses too.
    pub(super) maps: Vec<MapHandle>,
    /// Program `iter/task` of the probe's own object that continues the walk for each task.
    pub(super) program: Option<&'static str>,
}

impl WalkPart {
    /// A part in a program of the probe's own object (section `iter/task`, loaded with
    /// [`Object::load_iterator`](crate::kit::Object::load_iterator)), which writes records
    /// about the task at hand and ends with `CALL_NEXT(ctx)`.
    pub fn program(name: &'static str) -> Self {
        Self { program: Some(name), ..Self::default() }
    }

    /// A part that is compiled into the object `process`.
    pub(crate) fn built_in(flag: &'static str) -> Self {
        Self::default().with(flag, 1_u8)
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl NoUninit) -> Self {
        self.globals.push((name, bytemuck::bytes_of(&value).to_vec()));
        self
    }

    pub(crate) fn sharing(mut self, maps: Vec<MapHandle>) -> Self {
        self.maps.extend(maps);
        self
    }
}
