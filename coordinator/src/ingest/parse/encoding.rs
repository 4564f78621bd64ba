//! Bytes to characters. UTF-8, or UTF-16 with its byte order mark, or ISO-8859-1 where the sender says so; anything else is
//! refused instead of guessed at, because a wrong guess is stored and cited for ever.

use super::ParseError;

/// Errors: `UnsupportedMedia` for what is no text at all (NUL bytes) or a charset we do not know, `Encoding` for broken text.
pub(super) fn decode(bytes: &[u8], media_type: &str) -> Result<String, ParseError> {
    if let Some(rest) = bytes.strip_prefix(&[0xEF, 0xBB, 0xBF]) {
        return utf8(rest, 3);
    }
    if let Some(rest) = bytes.strip_prefix(&[0xFF, 0xFE]) {
        return utf16(rest, u16::from_le_bytes);
    }
    if let Some(rest) = bytes.strip_prefix(&[0xFE, 0xFF]) {
        return utf16(rest, u16::from_be_bytes);
    }
    match charset(media_type).as_deref() {
        None | Some("utf-8" | "utf8" | "us-ascii") => utf8(bytes, 0),
        // A byte of ISO-8859-1 is the code point of its number.
        Some("iso-8859-1" | "latin1") => text_only(bytes.iter().map(|byte| char::from(*byte)).collect()),
        Some(other) => Err(ParseError::UnsupportedMedia { found: format!("charset {}", other.escape_debug()) }),
    }
}

fn charset(media_type: &str) -> Option<String> {
    media_type.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"').to_ascii_lowercase())
    })
}

fn utf8(bytes: &[u8], offset: usize) -> Result<String, ParseError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => text_only(text.to_owned()),
        // Binary formats nearly always hold NUL bytes, broken text hardly ever.
        Err(_) if bytes.contains(&0) => Err(binary()),
        Err(error) => Err(ParseError::Encoding { encoding: "UTF-8".into(), offset: offset + error.valid_up_to() }),
    }
}

fn utf16(bytes: &[u8], read: fn([u8; 2]) -> u16) -> Result<String, ParseError> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let broken = |units: usize| ParseError::Encoding { encoding: "UTF-16".into(), offset: 2 + 2 * units };
    let mut text = String::with_capacity(bytes.len());
    let mut units = 0;
    for decoded in char::decode_utf16(pairs.iter().map(|pair| read(*pair))) {
        let character = decoded.map_err(|_| broken(units))?;
        units += character.len_utf16();
        text.push(character);
    }
    if rest.is_empty() { text_only(text) } else { Err(broken(units)) }
}

fn text_only(text: String) -> Result<String, ParseError> {
    if text.contains('\0') { Err(binary()) } else { Ok(text) }
}

fn binary() -> ParseError {
    ParseError::UnsupportedMedia { found: "binary data".to_owned() }
}
