//! What is loaded in the kernel, by id.

use std::collections::BTreeSet;

use super::{Attr, Command, call};

#[repr(C)]
#[derive(Default)]
struct NextId {
    start_id: u32,
    next_id: u32,
    open_flags: u32,
    padding: u32,
}

impl Attr for NextId {}

/// Ids of the programs in the kernel. Does not open them: an open descriptor would keep a
/// program from being freed.
pub(crate) fn program_ids() -> BTreeSet<u32> {
    ids(Command::ProgramNextId)
}

/// Ids of the maps in the kernel.
pub(crate) fn map_ids() -> BTreeSet<u32> {
    ids(Command::MapNextId)
}

fn ids(next: Command) -> BTreeSet<u32> {
    let mut attr = NextId::default();
    let mut ids = BTreeSet::new();
    while call(next, &mut attr).is_ok() {
        ids.insert(attr.next_id);
        attr.start_id = attr.next_id;
    }
    ids
}
