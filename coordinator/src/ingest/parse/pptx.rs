//! Presentations: a page per slide in the order they are shown, the slide's title as its heading.

use std::collections::HashMap;

use super::builder::Builder;
use super::package::{Package, resolve};
use super::xml::{Step, element_text, walk};
use super::{ParseError, Parsed};

const FORMAT: &str = "PPTX";
const PRESENTATION: &str = "ppt/presentation.xml";

/// Errors: `Malformed`, `Unpacked`.
pub(super) fn parse(mut package: Package<'_>) -> Result<Parsed, ParseError> {
    package.call(FORMAT);
    let targets = targets(&package.text("ppt/_rels/presentation.xml.rels")?)?;
    let mut slides = Vec::new();
    walk(FORMAT, &package.text(PRESENTATION)?, |step| {
        if let Step::Open(element) = step
            && element.name() == "sldId"
        {
            // Both `id` and `r:id` are attributes; only the second names a target.
            slides.extend(element.attributes("id").into_iter().find_map(|id| targets.get(&id).cloned()));
        }
        Ok(())
    })?;
    let mut builder = Builder::default();
    if package.has("docProps/core.xml") {
        builder.title(&element_text(FORMAT, &package.text("docProps/core.xml")?, "title")?);
    }
    for target in slides {
        let source = package.text(&resolve(PRESENTATION, &target))?;
        builder.page()?;
        let mut slide = Slide::default();
        walk(FORMAT, &source, |step| slide.step(step, &mut builder))?;
    }
    Ok(builder.finish())
}

/// Targets of a part's relations by id.
fn targets(relations: &str) -> Result<HashMap<String, String>, ParseError> {
    let mut targets = HashMap::new();
    walk(FORMAT, relations, |step| {
        if let Step::Open(element) = step
            && let Some((id, target)) = element.attribute("Id").zip(element.attribute("Target"))
        {
            targets.insert(id, target);
        }
        Ok(())
    })?;
    Ok(targets)
}

#[derive(Default)]
struct Slide {
    words: String,
    in_text: bool,
    /// Inside the shape that holds the slide's title.
    is_title: bool,
}

impl Slide {
    fn step(&mut self, step: Step<'_>, builder: &mut Builder) -> Result<(), ParseError> {
        match step {
            Step::Open(element) => match element.name() {
                "sp" => self.is_title = false,
                "ph" => self.is_title = matches!(element.attribute("type").as_deref(), Some("title" | "ctrTitle")),
                "t" => self.in_text = true,
                "br" => self.words.push('\n'),
                _ => {}
            },
            Step::Text(text) if self.in_text => self.words.push_str(&text),
            Step::Text(_) => {}
            Step::Close(name) => match name.as_str() {
                "t" => self.in_text = false,
                "sp" => self.is_title = false,
                "p" => {
                    let words = std::mem::take(&mut self.words);
                    return if self.is_title { builder.heading(1, &words) } else { builder.line(&words) };
                }
                _ => {}
            },
        }
        Ok(())
    }
}
