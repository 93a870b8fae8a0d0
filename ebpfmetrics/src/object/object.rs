use std::{collections::BTreeMap, os::fd::OwnedFd};

use super::{error::invalid, map_handle::MapHandle, programs::Program};
use crate::error::Result;

/// A BPF object in the kernel. Dropping it detaches its programs and frees its maps, unless
/// a [`MapHandle`] refers to them.
///
/// Programs and maps have their names in C. Keys and values of maps are plain data of
/// exactly the size in C; another size is an
/// [`InvalidObject`](crate::ErrorKind::InvalidObject) error.
///
/// | section of a program | is loaded by |
/// |---|---|
/// | `tp_btf/NAME` | [`attach`](Self::attach), [`load_for_tracepoint`](Self::load_for_tracepoint) |
/// | `tracepoint/NAME` | [`attach_tracepoint`](Self::attach_tracepoint) |
/// | `raw_tp/NAME` | [`attach_raw_tracepoint`](Self::attach_raw_tracepoint), [`load_callable`](Self::load_callable) |
/// | `iter/NAME` | [`load_iterator`](Self::load_iterator) |
///
/// | type of a map | is read and written by |
/// |---|---|
/// | `HASH`, `LRU_HASH` | [`lookup_batch`](Self::lookup_batch), [`lookup_and_delete_batch`](Self::lookup_and_delete_batch), [`lookup`](Self::lookup), [`update_batch`](Self::update_batch), [`update`](Self::update), [`delete_batch`](Self::delete_batch), [`delete`](Self::delete) |
/// | `ARRAY` | [`array_element`](Self::array_element), [`array_elements`](Self::array_elements), [`set_array_element`](Self::set_array_element) |
/// | `PERCPU_ARRAY` | [`per_cpu_element`](Self::per_cpu_element), [`losses`](Self::losses) |
/// | `STACK` | [`push`](Self::push) |
/// | `PROG_ARRAY` | [`set_tail_call`](Self::set_tail_call), [`clear_tail_call`](Self::clear_tail_call) |
pub struct Object {
    pub(super) name: &'static str,
    /// Its types, as loaded into the kernel.
    pub(super) btf: Option<OwnedFd>,
    pub(super) programs: BTreeMap<String, Program>,
    pub(super) maps: BTreeMap<String, ObjectMap>,
}

/// A map that an object uses.
pub(super) struct ObjectMap {
    pub(super) handle: MapHandle,
    /// Another object created it, and accounts for its memory.
    pub(super) reused: bool,
}

impl Object {
    /// The name given to [`ObjectLoader::new`](crate::kit::ObjectLoader::new).
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// A handle of a map, to reuse it in another object.
    ///
    /// # Errors
    /// [`InvalidObject`](crate::ErrorKind::InvalidObject) if there is no such map.
    pub fn map_handle(&self, map: &str) -> Result<MapHandle> {
        self.handle(map).cloned()
    }

    /// Handles of all maps except those of global variables.
    pub fn map_handles(&self) -> Vec<MapHandle> {
        let declared = self.maps.iter().filter(|(name, _)| !name.starts_with('.'));
        declared.map(|(_, map)| map.handle.clone()).collect()
    }

    pub(super) fn handle(&self, map: &str) -> Result<&MapHandle> {
        let missing = || invalid(self.name, format_args!("it has no map {map}"));
        self.maps.get(map).map(|map| &map.handle).ok_or_else(missing)
    }

    pub(super) fn program(&self, program: &str) -> Result<&Program> {
        let missing = || invalid(self.name, format_args!("it has no program {program}"));
        self.programs.get(program).ok_or_else(missing)
    }

    pub(super) fn program_mut(&mut self, program: &str) -> Result<&mut Program> {
        let missing = || invalid(self.name, format_args!("it has no program {program}"));
        self.programs.get_mut(program).ok_or_else(missing)
    }
}
