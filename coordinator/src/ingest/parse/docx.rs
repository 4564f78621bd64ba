//! Word documents: paragraphs in order, headings by style, a line per table row. Text that the change history deleted is not
//! text; of drawings that are there twice, for older readers, one is read.

use std::collections::HashMap;

use super::builder::Builder;
use super::package::Package;
use super::xml::{Step, element_text, walk};
use super::{ParseError, Parsed};

const FORMAT: &str = "DOCX";
/// What a style's level says where the style is the document's title.
const TITLE_LEVEL: u8 = 0;

/// Errors: `Malformed`, `Unpacked`.
pub(super) fn parse(mut package: Package<'_>) -> Result<Parsed, ParseError> {
    package.call(FORMAT);
    let mut reading = Reading::default();
    if package.has("word/styles.xml") {
        reading.levels = heading_levels(&package.text("word/styles.xml")?)?;
    }
    if package.has("docProps/core.xml") {
        reading.builder.title(&element_text(FORMAT, &package.text("docProps/core.xml")?, "title")?);
    }
    walk(FORMAT, &package.text("word/document.xml")?, |step| reading.step(step))?;
    Ok(reading.builder.finish())
}

/// Levels of styles by id. Ids are in the author's language, names are not: `heading 1` to `heading 9`, `Title`.
fn heading_levels(styles: &str) -> Result<HashMap<String, u8>, ParseError> {
    let mut levels = HashMap::new();
    let mut style = String::new();
    walk(FORMAT, styles, |step| {
        if let Step::Open(element) = step {
            match element.name() {
                "style" => style = element.attribute("styleId").unwrap_or_default(),
                "name" => {
                    let name = element.attribute("val").unwrap_or_default().to_ascii_lowercase();
                    let level = name.strip_prefix("heading ").and_then(|number| number.parse().ok());
                    if let Some(level) = level.or((name == "title").then_some(TITLE_LEVEL)) {
                        levels.insert(style.clone(), level);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    })?;
    Ok(levels)
}

#[derive(Default)]
struct Reading {
    levels: HashMap<String, u8>,
    builder: Builder,
    /// The paragraph being read.
    words: String,
    level: Option<u8>,
    in_text: bool,
    /// Inside a drawing's version for older readers.
    fallbacks: usize,
    /// Cells of the table row being read, outermost table only.
    row: Vec<String>,
    tables: usize,
}

impl Reading {
    fn step(&mut self, step: Step<'_>) -> Result<(), ParseError> {
        match step {
            Step::Open(element) if element.name() == "Fallback" => self.fallbacks += 1,
            Step::Close(name) if name == "Fallback" => self.fallbacks = self.fallbacks.saturating_sub(1),
            _ if self.fallbacks > 0 => {}
            Step::Open(element) => match element.name() {
                "t" => self.in_text = true,
                "tab" => self.words.push(' '),
                "br" | "cr" => self.words.push('\n'),
                "pStyle" => {
                    self.level = element.attribute("val").and_then(|style| self.levels.get(&style)).copied();
                }
                "tbl" => self.tables += 1,
                "tc" if self.tables == 1 => self.row.push(String::new()),
                _ => {}
            },
            Step::Text(text) if self.in_text => self.words.push_str(&text),
            Step::Text(_) => {}
            Step::Close(name) => match name.as_str() {
                "t" => self.in_text = false,
                "p" => self.end_paragraph()?,
                "tr" if self.tables == 1 => {
                    let cells = std::mem::take(&mut self.row);
                    self.builder.line(&cells.join(" | "))?;
                }
                "tbl" => self.tables = self.tables.saturating_sub(1),
                _ => {}
            },
        }
        Ok(())
    }

    fn end_paragraph(&mut self) -> Result<(), ParseError> {
        let words = std::mem::take(&mut self.words);
        let level = self.level.take();
        if self.tables > 0 {
            if let Some(cell) = self.row.last_mut() {
                if !cell.is_empty() {
                    cell.push(' ');
                }
                cell.push_str(words.trim());
            }
            return Ok(());
        }
        match level {
            Some(TITLE_LEVEL) => {
                self.builder.title(&words);
                self.builder.paragraph(&words)
            }
            Some(level) => self.builder.heading(level, &words),
            None => self.builder.paragraph(&words),
        }
    }
}
