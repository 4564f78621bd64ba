//! Rows to text: a line per row, each value behind its column's name, so that a row found alone still says what it is about.

use super::ParseError;
use super::builder::Builder;

/// Writes rows as they come. The first row names the columns if every cell of it is a word rather than a number and no two are equal.
#[derive(Default)]
pub(super) struct Table {
    first: Option<Vec<String>>,
    names: Option<Vec<String>>,
}

impl Table {
    /// The next row. Empty cells are left out.
    pub(super) fn row(&mut self, cells: Vec<String>, into: &mut Builder) -> Result<(), ParseError> {
        if cells.iter().all(|cell| cell.trim().is_empty()) {
            return Ok(());
        }
        let Some(names) = &self.names else {
            match self.first.take() {
                None if are_names(&cells) => self.first = Some(cells),
                None => {
                    self.names = Some(Vec::new());
                    into.line(&line(&[], &cells))?;
                }
                Some(names) => {
                    into.line(&line(&names, &cells))?;
                    self.names = Some(names);
                }
            }
            return Ok(());
        };
        into.line(&line(names, &cells))
    }

    /// No more rows. A table of nothing but its first row is that row.
    pub(super) fn finish(self, into: &mut Builder) -> Result<(), ParseError> {
        match self.first {
            Some(only) => into.line(&line(&[], &only)),
            None => Ok(()),
        }
    }
}

fn are_names(cells: &[String]) -> bool {
    let named = cells.iter().map(|cell| cell.trim()).collect::<Vec<_>>();
    let mut distinct = named.clone();
    distinct.sort_unstable();
    distinct.dedup();
    distinct.len() == named.len() && named.iter().all(|cell| !cell.is_empty() && cell.parse::<f64>().is_err())
}

fn line(names: &[String], cells: &[String]) -> String {
    let filled = cells.iter().enumerate().filter(|(_, cell)| !cell.trim().is_empty());
    let words = filled.map(|(column, cell)| {
        let cell = cell.split_whitespace().collect::<Vec<_>>().join(" ");
        match names.get(column) {
            Some(name) => format!("{}: {cell}", name.trim()),
            None => cell,
        }
    });
    words.collect::<Vec<_>>().join("; ")
}
