//! From the process table and the columns to a snapshot.

use std::collections::BTreeSet;

use super::{
    column::{Column, Columns, RowSource},
    table::ProcessTable,
};
use crate::{
    process::ProcessId,
    snapshot::{Losses, Snapshot, Window},
};

/// Makes the snapshot of a window. `losses` are those of the set itself.
pub(super) fn assemble(
    window: Window,
    table: &ProcessTable,
    columns: &Columns,
    mut losses: Losses,
) -> Snapshot {
    let late: BTreeSet<ProcessId> =
        columns.iter().flat_map(|(_, column)| column.late_processes()).collect();
    let most = table.ids().len() + late.len();
    let (mut rows, mut sources) = (Vec::with_capacity(most), Vec::with_capacity(most));
    for (index, id, info) in table.rows() {
        rows.push((id, info));
        sources.push(RowSource::Entry(index));
    }
    for id in late {
        if let Err(place) = rows.binary_search_by_key(&id, |(id, _)| *id) {
            rows.insert(place, (id, table.info(id)));
            sources.insert(place, RowSource::Late(id));
        }
    }
    let part = |(id, column): &(u64, Box<dyn Column>)| {
        (*id, column.part(&sources, table.ids(), window.end_ns))
    };
    columns.iter().for_each(|(_, column)| losses += &column.losses());
    let parts = columns.iter().map(part).collect();
    Snapshot::from_parts(window, losses, rows, table.overflow(), parts)
}
