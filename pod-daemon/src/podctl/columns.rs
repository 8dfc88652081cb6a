//! Aligned tables.

use super::{Error, Output, output::Tone};

/// Space between columns, as kubectl has it.
const GAP: usize = 3;

/// A cell of a table.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(super) fn new(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// A table whose columns are as wide as what was printed in them so far needs.
pub(super) struct Columns {
    widths: Vec<usize>,
    titles: Option<Vec<Cell>>,
}

impl Columns {
    pub(super) fn new(titles: &[&str]) -> Self {
        let titles: Vec<Cell> = titles.iter().copied().map(Cell::from).collect();
        Self { widths: vec![0; titles.len()], titles: Some(titles) }
    }

    /// Makes the first columns at least so wide.
    pub(super) fn reserve(&mut self, widths: &[usize]) {
        for (width, least) in self.widths.iter_mut().zip(widths) {
            *width = (*width).max(*least);
        }
    }

    /// Prints rows, below the titles if they are the first.
    pub(super) fn print(&mut self, rows: Vec<Vec<Cell>>, output: &mut Output) -> Result<(), Error> {
        let rows: Vec<_> = self.titles.take().into_iter().chain(rows).collect();
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let mut text = String::new();
        for row in &rows {
            let mut pad = 0;
            for (width, cell) in self.widths.iter().zip(row) {
                text.extend(std::iter::repeat_n(' ', pad));
                text.push_str(&output.tint(&cell.text, cell.tone));
                pad = width + GAP - cell.text.chars().count();
            }
            text.push('\n');
        }
        output.text(&text)
    }
}
