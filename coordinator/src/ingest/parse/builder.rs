//! Puts a document's text together from the pieces a format is made of, and keeps where headings and pages begin.

use cluster_config::limits;

use super::{HeadingPath, ParseError, Parsed, sections_between, tidy};

/// Text under construction. Never longer than `limits::DOCUMENT_BYTES_MAX`.
#[derive(Default)]
pub(super) struct Builder {
    text: String,
    path: HeadingPath,
    starts: Vec<(usize, Vec<String>)>,
    pages: Vec<usize>,
    title: Option<String>,
}

impl Builder {
    /// The document's own title; the first one with words stays.
    pub(super) fn title(&mut self, words: &str) {
        self.title = self.title.take().or_else(|| Some(tidy(words)).filter(|title| !title.is_empty()));
    }

    /// A page begins here, and with it a section under no heading: no chunk stands on two pages. Errors: more than `limits::PAGES_MAX`.
    pub(super) fn page(&mut self) -> Result<(), ParseError> {
        if self.pages.len() == limits::PAGES_MAX {
            return Err(ParseError::Unpacked { what: "pages".into(), most: limits::PAGES_MAX });
        }
        self.gap("\n\n");
        self.path = HeadingPath::default();
        self.pages.push(self.text.len());
        self.starts.push((self.text.len(), Vec::new()));
        Ok(())
    }

    /// A heading on a line of its own.
    pub(super) fn heading(&mut self, level: u8, words: &str) -> Result<(), ParseError> {
        let words = tidy(words);
        if words.is_empty() {
            return Ok(());
        }
        self.gap("\n\n");
        self.path.enter(level, &words);
        self.starts.push((self.text.len(), self.path.path()));
        self.write(&words)
    }

    /// Lines that belong together, trimmed at the ends.
    pub(super) fn paragraph(&mut self, words: &str) -> Result<(), ParseError> {
        self.block("\n\n", words)
    }

    /// A line below the one before.
    pub(super) fn line(&mut self, words: &str) -> Result<(), ParseError> {
        self.block("\n", words)
    }

    /// A document within the document: its sections stand below the headings of here.
    pub(super) fn embed(&mut self, part: &Parsed) -> Result<(), ParseError> {
        self.gap("\n\n");
        let start = self.text.len();
        let above = self.path.path();
        for section in &part.sections {
            let path = above.iter().chain(&section.heading_path).take(limits::HEADING_DEPTH_MAX).cloned().collect();
            self.starts.push((start + section.span.start, path));
        }
        self.write(part.text.trim_end())
    }

    /// The whole.
    pub(super) fn finish(mut self) -> Parsed {
        if self.starts.first().is_none_or(|(start, _)| *start > 0) {
            self.starts.insert(0, (0, Vec::new()));
        }
        let sections = sections_between(&self.text, self.starts);
        Parsed { title: self.title, text: self.text, sections, pages: self.pages }
    }

    fn block(&mut self, gap: &str, words: &str) -> Result<(), ParseError> {
        let words = words.trim();
        if words.is_empty() {
            return Ok(());
        }
        self.gap(gap);
        self.write(words)
    }

    /// White space between what is there and what follows: at least `gap`.
    fn gap(&mut self, gap: &str) {
        if !self.text.is_empty() && !self.text.ends_with(gap) {
            let there = self.text.len() - self.text.trim_end_matches('\n').len();
            self.text.push_str(&gap[there.min(gap.len())..]);
        }
    }

    fn write(&mut self, words: &str) -> Result<(), ParseError> {
        if self.text.len() + words.len() > limits::DOCUMENT_BYTES_MAX {
            return Err(ParseError::Unpacked { what: "bytes of text".into(), most: limits::DOCUMENT_BYTES_MAX });
        }
        self.text.push_str(words);
        Ok(())
    }
}
