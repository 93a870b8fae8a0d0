//! Draws tables, in place of the previous one if they are live.

use std::io::{self, IsTerminal, Write, stdout};

use comfy_table::{Attribute, Cell, CellAlignment, Color, ColumnConstraint, Width, presets};
use crossterm::{
    cursor::MoveTo,
    queue,
    style::Print,
    terminal::{
        self, BeginSynchronizedUpdate, Clear, ClearType, DisableLineWrap, EnableLineWrap,
        EndSynchronizedUpdate,
    },
};
use ebpfmetrics::Window;

use crate::columns::{Column, Value};

/// Width of the terminal; `None` if the output goes elsewhere.
pub(crate) fn terminal_width() -> Option<usize> {
    let size = terminal::size().ok().filter(|_| stdout().is_terminal());
    size.map(|(width, _)| usize::from(width))
}

/// Lines that a live table has room for.
pub(crate) fn terminal_height() -> usize {
    terminal::size().map_or(24, |(_, height)| usize::from(height))
}

/// The columns without as many of `optional` as the terminal has no room for.
pub(crate) fn fitting<R>(
    mut columns: Vec<&'static Column<R>>,
    optional: &[&str],
) -> Vec<&'static Column<R>> {
    for optional in optional {
        let width: usize = columns.iter().map(|column| usize::from(column.width) + 1).sum();
        if terminal_width().is_some_and(|available| width > available) {
            columns.retain(|column| column.name != *optional);
        }
    }
    columns
}

/// The last column takes what the terminal has left, and is cut there.
pub(crate) fn draw<R>(
    columns: &[&Column<R>],
    rows: &[R],
    window: Window,
    is_grey: fn(&R) -> bool,
) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(presets::NOTHING).style_text_only();
    table.set_header(
        columns.iter().map(|column| Cell::new(column.name).add_attribute(Attribute::Bold)),
    );
    let before: usize = columns.iter().rev().skip(1).map(|it| usize::from(it.width) + 1).sum();
    let last = terminal_width().map_or(usize::MAX, |width| width.saturating_sub(before));
    for row in rows {
        let cells = columns.iter().map(|column| {
            let cell = Cell::new(match (column.value)(row, window) {
                Value::Number(figure, decimals) => format!("{figure:.decimals$}"),
                Value::Text(text) => text.chars().take(last).collect(),
                Value::Unknown => "-".into(),
            });
            if is_grey(row) { cell.fg(Color::DarkGrey) } else { cell }
        });
        table.add_row(cells);
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 1));
        if i + 1 < columns.len() {
            column.set_cell_alignment(CellAlignment::Right);
            let width = Width::Fixed(columns[i].width + 1);
            column.set_constraint(ColumnConstraint::LowerBoundary(width));
        }
    }
    table.trim_fmt() + "\n"
}

/// Prints text; a live one in place of the previous one, as far as the terminal has room.
pub(crate) fn print(text: &str, live: bool) -> io::Result<()> {
    let mut out = stdout().lock();
    if !live {
        return writeln!(out, "{}", text.trim_end());
    }
    queue!(out, BeginSynchronizedUpdate, DisableLineWrap, MoveTo(0, 0), Clear(ClearType::All))?;
    for line in text.lines().take(terminal_height().saturating_sub(1)) {
        queue!(out, Print(line), Print("\r\n"))?;
    }
    queue!(out, EnableLineWrap, EndSynchronizedUpdate)?;
    out.flush()
}
