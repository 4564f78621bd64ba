//! PDF, by pdf-extract, page by page. Where that fails on a page, as it does by panics too, lopdf's simpler reading of the same page
//! takes its place; a page that neither reads fails the document, because a missing page would be missed by nobody.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pdf_extract::{Document, Object, PlainTextOutput, output_doc_page};

use super::builder::Builder;
use super::{ParseError, Parsed};

/// Errors: `Malformed`, `Encrypted`, `Unpacked`.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, ParseError> {
    let malformed = |reason: String| ParseError::Malformed { format: "PDF".into(), reason };
    let mut document = Document::load_mem(bytes).map_err(|error| malformed(error.to_string()))?;
    if document.is_encrypted() && document.decrypt("").is_err() {
        return Err(ParseError::Encrypted { format: "PDF".into() });
    }
    let mut builder = Builder::default();
    if let Some(title) = title(&document) {
        builder.title(&title);
    }
    for page in document.get_pages().into_keys() {
        let text = page_text(&document, page).ok_or_else(|| malformed(format!("page {page} cannot be read")))?;
        builder.page()?;
        builder.paragraph(&tidy_lines(&text))?;
    }
    Ok(builder.finish())
}

fn title(document: &Document) -> Option<String> {
    let info = document.trailer.get(b"Info").ok()?;
    let info = match info {
        Object::Reference(id) => document.get_object(*id).ok()?,
        direct => direct,
    };
    pdf_extract::decode_text_string(info.as_dict().ok()?.get(b"Title").ok()?).ok()
}

fn page_text(document: &Document, page: u32) -> Option<String> {
    let laid_out = catch_unwind(AssertUnwindSafe(|| {
        let mut text = String::new();
        output_doc_page(document, &mut PlainTextOutput::new(&mut text), page).is_ok().then_some(text)
    }));
    laid_out.ok().flatten().or_else(|| {
        let plain = catch_unwind(AssertUnwindSafe(|| document.extract_text(&[page]).ok()));
        plain.ok().flatten()
    })
}

/// Runs of spaces folded, at most one empty line in a row, no NUL bytes.
fn tidy_lines(text: &str) -> String {
    let mut tidy = String::with_capacity(text.len());
    let mut is_gap = false;
    for line in text.lines() {
        let mut words = line.split(|c: char| c.is_whitespace() || c == '\0').filter(|word| !word.is_empty()).peekable();
        if words.peek().is_none() {
            is_gap = !tidy.is_empty();
            continue;
        }
        if !tidy.is_empty() {
            tidy.push_str(if std::mem::take(&mut is_gap) { "\n\n" } else { "\n" });
        }
        for (position, word) in words.enumerate() {
            if position > 0 {
                tidy.push(' ');
            }
            tidy.push_str(word);
        }
    }
    tidy
}
