//! XML as a flat run of opened, closed and written, without namespaces: enough for the text of Office files and EPUB. No
//! entities are expanded but the predefined ones and character references, so nothing grows on the way.

use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

use super::ParseError;

/// One step through a document.
pub(super) enum Step<'a> {
    /// An element opens; empty ones close at once.
    Open(Element<'a>),
    /// An element closes, by local name.
    Close(String),
    /// Characters.
    Text(String),
}

/// An opened element.
pub(super) struct Element<'a>(BytesStart<'a>);

impl Element<'_> {
    /// Name without prefix.
    pub(super) fn name(&self) -> &str {
        self.0.local_name().into_inner()
    }

    /// The first attribute of that local name.
    pub(super) fn attribute(&self, name: &str) -> Option<String> {
        self.attributes(name).into_iter().next()
    }

    /// All attributes of that local name, whatever their prefixes.
    pub(super) fn attributes(&self, name: &str) -> Vec<String> {
        let mut all = self.0.attributes();
        let named = all.with_checks(false).flatten().filter(|a| a.key.local_name().into_inner() == name);
        named.filter_map(|a| Some(a.normalized_value(XmlVersion::Implicit1_0).ok()?.into_owned())).collect()
    }
}

/// Walks over `source`. Errors: what `visit` gives, or `Malformed`.
pub(super) fn walk<'a>(
    format: &'static str,
    source: &'a str,
    mut visit: impl FnMut(Step<'a>) -> Result<(), ParseError>,
) -> Result<(), ParseError> {
    let mut reader = Reader::from_str(source);
    reader.config_mut().expand_empty_elements = true;
    loop {
        let event = reader
            .read_event()
            .map_err(|error| ParseError::Malformed { format: format.into(), reason: error.to_string() })?;
        match event {
            Event::Start(start) => visit(Step::Open(Element(start)))?,
            Event::End(end) => visit(Step::Close(end.local_name().into_inner().to_owned()))?,
            Event::Text(text) => visit(Step::Text(text.xml10_content().into_owned()))?,
            Event::CData(text) => visit(Step::Text(text.xml10_content().into_owned()))?,
            Event::GeneralRef(reference) => {
                let character = reference.resolve_char_ref().ok().flatten().map(String::from);
                let text = character.or_else(|| resolve_predefined_entity(&reference).map(str::to_owned));
                visit(Step::Text(text.unwrap_or_default()))?;
            }
            Event::Eof => return Ok(()),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) | Event::Empty(_) => {}
        }
    }
}

/// The text of the first element of that local name; empty where there is none.
pub(super) fn element_text(format: &'static str, source: &str, name: &str) -> Result<String, ParseError> {
    let (mut is_inside, mut is_done, mut words) = (false, false, String::new());
    walk(format, source, |step| {
        match step {
            Step::Open(element) if element.name() == name && !is_done => is_inside = true,
            Step::Close(closed) if closed == name && is_inside => (is_inside, is_done) = (false, true),
            Step::Text(text) if is_inside => words.push_str(&text),
            _ => {}
        }
        Ok(())
    })?;
    Ok(words)
}
