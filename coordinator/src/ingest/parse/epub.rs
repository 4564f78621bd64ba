//! Books: the chapters in reading order, each read as HTML.

use std::collections::HashMap;

use super::builder::Builder;
use super::package::{Package, resolve};
use super::xml::{Step, element_text, walk};
use super::{ParseError, Parsed, html};

const FORMAT: &str = "EPUB";

/// Errors: `Malformed`, `Unpacked`.
pub(super) fn parse(mut package: Package<'_>) -> Result<Parsed, ParseError> {
    package.call(FORMAT);
    let mut root = None;
    walk(FORMAT, &package.text("META-INF/container.xml")?, |step| {
        if let Step::Open(element) = step
            && element.name() == "rootfile"
        {
            root = root.take().or_else(|| element.attribute("full-path"));
        }
        Ok(())
    })?;
    let root = root.ok_or_else(|| package.malformed("its container names no book"))?;
    let book = package.text(&root)?;
    let mut builder = Builder::default();
    builder.title(&element_text(FORMAT, &book, "title")?);
    for chapter in chapters(&book)? {
        let source = package.text(&resolve(&root, &unescaped(&chapter)))?;
        builder.embed(&html::parse(&source))?;
    }
    Ok(builder.finish())
}

/// Files of the chapters as the book names them.
fn chapters(book: &str) -> Result<Vec<String>, ParseError> {
    let (mut files, mut chapters) = (HashMap::new(), Vec::new());
    walk(FORMAT, book, |step| {
        if let Step::Open(element) = step {
            match element.name() {
                "item" => files.extend(element.attribute("id").zip(element.attribute("href"))),
                "itemref" => chapters.extend(element.attribute("idref")),
                _ => {}
            }
        }
        Ok(())
    })?;
    Ok(chapters.iter().filter_map(|id| files.get(id).cloned()).collect())
}

/// File names in a book are URLs: `%20` stands for a space.
fn unescaped(href: &str) -> String {
    let href = href.split('#').next().unwrap_or(href);
    let mut bytes = Vec::with_capacity(href.len());
    let mut rest = href.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
