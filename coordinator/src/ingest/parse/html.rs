//! HTML to the text a reader sees: no scripts, styles or comments; white space folded as a browser folds it; a new line for
//! each block, an empty line before each heading.
//!
//! Only the tokenizer of html5ever is used, not its tree builder: the builder searches its stack of open elements for
//! each tag, so nested elements cost the square of their number. The text needs no tree.

use std::cell::RefCell;

use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::RawKind;
use html5ever::tokenizer::{BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts};

use super::{HeadingPath, Parsed, sections_between, tidy};

/// The `<title>`, else the first `<h1>`, is the title.
pub(super) fn parse(source: &str) -> Parsed {
    let input = BufferQueue::default();
    input.push_back(StrTendril::from_slice(source));
    let tokenizer = Tokenizer::new(Sink::default(), TokenizerOpts::default());
    let _ = tokenizer.feed(&input);
    tokenizer.end();
    tokenizer.sink.0.into_inner().finish()
}

#[derive(Default)]
struct Sink(RefCell<Extraction>);

#[derive(Default)]
struct Extraction {
    text: String,
    /// White space was seen since the last character written.
    gap: Gap,
    starts: Vec<(usize, Vec<String>)>,
    path: HeadingPath,
    /// Level, start and words of the heading being read.
    heading: Option<(u8, usize)>,
    title: Option<String>,
    first_h1: Option<String>,
    in_title: bool,
    /// The element whose raw content is being dropped.
    dropping: Option<String>,
    preformatted: usize,
}

/// What to write before the next character.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Gap {
    #[default]
    None,
    Space,
    Line,
    Paragraph,
}

impl TokenSink for Sink {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut extraction = self.0.borrow_mut();
        match token {
            Token::TagToken(tag) if tag.kind == TagKind::StartTag => return extraction.open(&tag),
            Token::TagToken(tag) => extraction.close(&tag.name),
            Token::CharacterTokens(characters) => extraction.write(&characters),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

impl Extraction {
    fn open(&mut self, tag: &Tag) -> TokenSinkResult<()> {
        let name: &str = &tag.name;
        match name {
            "title" if self.title.is_none() => {
                self.in_title = true;
                self.title = Some(String::new());
                return TokenSinkResult::RawData(RawKind::Rcdata);
            }
            "title" | "textarea" => {
                self.dropping = Some(name.to_owned());
                return TokenSinkResult::RawData(RawKind::Rcdata);
            }
            "script" => {
                self.dropping = Some(name.to_owned());
                return TokenSinkResult::RawData(RawKind::ScriptData);
            }
            "style" | "iframe" | "noembed" | "noframes" | "xmp" => {
                self.dropping = Some(name.to_owned());
                return TokenSinkResult::RawData(RawKind::Rawtext);
            }
            "pre" => {
                self.preformatted += 1;
                self.widen(Gap::Line);
            }
            "td" | "th" => self.widen(Gap::Space),
            _ => {
                if let Some(level) = heading_level(name) {
                    self.end_heading();
                    self.widen(Gap::Paragraph);
                    // The gap is written first, so that the section starts with the heading's first word.
                    self.write_gap();
                    self.heading = Some((level, self.text.len()));
                } else if is_block(name) {
                    self.widen(Gap::Line);
                }
            }
        }
        TokenSinkResult::Continue
    }

    fn close(&mut self, name: &str) {
        if self.in_title {
            self.in_title = false;
        } else if self.dropping.as_deref() == Some(name) {
            self.dropping = None;
        } else if heading_level(name).is_some() {
            self.end_heading();
        } else {
            if name == "pre" {
                self.preformatted = self.preformatted.saturating_sub(1);
            }
            if is_block(name) || name == "pre" {
                self.widen(if name == "p" { Gap::Paragraph } else { Gap::Line });
            }
        }
    }

    fn write(&mut self, characters: &str) {
        if self.in_title {
            if let Some(title) = &mut self.title {
                title.push_str(characters);
            }
            return;
        }
        if self.dropping.is_some() {
            return;
        }
        for character in characters.chars() {
            if self.preformatted > 0 && character == '\n' {
                self.widen(Gap::Line);
            } else if character.is_whitespace() && self.preformatted == 0 {
                self.widen(Gap::Space);
            } else {
                self.write_gap();
                self.text.push(character);
            }
        }
    }

    fn widen(&mut self, gap: Gap) {
        self.gap = self.gap.max(gap);
    }

    fn write_gap(&mut self) {
        let gap = std::mem::take(&mut self.gap);
        if !self.text.is_empty() {
            self.text.push_str(match gap {
                Gap::None => "",
                Gap::Space => " ",
                Gap::Line => "\n",
                Gap::Paragraph => "\n\n",
            });
        }
    }

    fn end_heading(&mut self) {
        let Some((level, start)) = self.heading.take() else { return };
        let words = tidy(&self.text[start..]);
        self.widen(Gap::Line);
        if words.is_empty() {
            return;
        }
        if level == 1 && self.first_h1.is_none() {
            self.first_h1 = Some(words.clone());
        }
        self.path.enter(level, &words);
        self.starts.push((start, self.path.path()));
    }

    fn finish(mut self) -> Parsed {
        self.end_heading();
        self.starts.insert(0, (0, Vec::new()));
        let sections = sections_between(&self.text, self.starts);
        let title = self.title.map(|title| tidy(&title)).filter(|title| !title.is_empty()).or(self.first_h1);
        Parsed { title, text: self.text, sections, pages: Vec::new() }
    }
}

fn heading_level(name: &str) -> Option<u8> {
    match name.as_bytes() {
        [b'h', digit @ b'1'..=b'6'] => Some(digit - b'0'),
        _ => None,
    }
}

/// Elements that a browser begins on a new line.
fn is_block(name: &str) -> bool {
    const BLOCKS: [&str; 35] = [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "br",
        "caption",
        "dd",
        "details",
        "dialog",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "header",
        "hr",
        "li",
        "main",
        "nav",
        "ol",
        "option",
        "p",
        "section",
        "summary",
        "table",
        "tbody",
        "tfoot",
        "thead",
        "tr",
        "ul",
        "video",
    ];
    BLOCKS.contains(&name)
}
