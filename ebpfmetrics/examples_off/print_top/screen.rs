use std::io::{self, stdout};

use crossterm::{
    cursor::{Hide, MoveTo, MoveToNextLine, Show},
    execute, queue,
    style::Print,
    terminal::{self, *},
};

/// The terminal while a table is redrawn in place; the last one stays behind.
pub(crate) struct Screen {
    last: String,
}

impl Screen {
    pub(crate) fn enter() -> io::Result<Self> {
        let mut screen = Self { last: String::new() };
        execute!(stdout(), EnterAlternateScreen, DisableLineWrap, Hide)?;
        screen.draw("Measuring ...")?;
        Ok(screen)
    }

    pub(crate) fn height(&self) -> usize {
        match terminal::size() {
            Ok((_, height)) if height > 0 => height.into(),
            _ => 24,
        }
    }

    /// Shows as much of the text as fits above the line of the cursor.
    pub(crate) fn draw(&mut self, text: &str) -> io::Result<()> {
        let lines = text.lines().take(self.height().saturating_sub(1));
        self.last = lines.flat_map(|line| [line, "\n"]).collect();
        let mut out = stdout().lock();
        queue!(out, BeginSynchronizedUpdate, MoveTo(0, 0))?;
        for line in self.last.lines() {
            queue!(out, Clear(ClearType::CurrentLine), Print(line), MoveToNextLine(1))?;
        }
        execute!(out, Clear(ClearType::FromCursorDown), EndSynchronizedUpdate)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = execute!(stdout(), Show, EnableLineWrap, LeaveAlternateScreen, Print(&self.last));
    }
}
