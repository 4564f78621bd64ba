//! Markdown: the source is the text; headings (ATX and setext, not those within code) make the sections.

use pulldown_cmark::{Event, HeadingLevel, MetadataBlockKind, Options, Parser, Tag, TagEnd};

use super::{HeadingPath, Parsed, sections_between, tidy};

/// The first heading of level 1, else a `title:` of the front matter, is the title.
pub(super) fn parse(source: String) -> Parsed {
    let options = Options::ENABLE_YAML_STYLE_METADATA_BLOCKS | Options::ENABLE_TABLES;
    let mut path = HeadingPath::default();
    let mut starts = vec![(0, Vec::new())];
    let (mut first_heading, mut front_title, mut body_start) = (None, None, 0);
    // Inside a heading: its level, where it starts, its words.
    let mut heading: Option<(u8, usize, String)> = None;
    let mut in_front_matter = false;
    for (event, range) in Parser::new_ext(&source, options).into_offset_iter() {
        match event {
            Event::Start(Tag::MetadataBlock(MetadataBlockKind::YamlStyle)) => in_front_matter = true,
            Event::End(TagEnd::MetadataBlock(_)) => {
                in_front_matter = false;
                body_start = range.end;
            }
            Event::Text(text) if in_front_matter => front_title = front_title.or_else(|| title_line(&text)),
            Event::Start(Tag::Heading { level, .. }) => heading = Some((number(level), range.start, String::new())),
            Event::Text(text) | Event::Code(text) => {
                if let Some((_, _, words)) = &mut heading {
                    words.push_str(&text);
                }
            }
            Event::SoftBreak | Event::HardBreak => {
                if let Some((_, _, words)) = &mut heading {
                    words.push(' ');
                }
            }
            Event::End(TagEnd::Heading(_)) => {
                let Some((level, start, words)) = heading.take() else { continue };
                path.enter(level, &words);
                if level == 1 && first_heading.is_none() {
                    first_heading = Some(tidy(&words)).filter(|title| !title.is_empty());
                }
                starts.push((line_start(&source, start), path.path()));
            }
            _ => {}
        }
    }
    let text = source[body_start..].to_owned();
    let starts = starts.into_iter().map(|(start, path)| (start.saturating_sub(body_start), path)).collect();
    let sections = sections_between(&text, starts);
    Parsed { title: first_heading.or(front_title), text, sections, pages: Vec::new() }
}

/// A heading may stand in a list or quotation; its section begins with its line.
fn line_start(source: &str, offset: usize) -> usize {
    source[..offset].rfind('\n').map_or(0, |newline| newline + 1)
}

fn title_line(front_matter: &str) -> Option<String> {
    let value = front_matter.lines().find_map(|line| line.strip_prefix("title:"))?;
    Some(tidy(value.trim().trim_matches(['"', '\'']))).filter(|title| !title.is_empty())
}

fn number(level: HeadingLevel) -> u8 {
    level as u8
}
