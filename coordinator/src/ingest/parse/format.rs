//! Which format an upload is. What the bytes say goes before what the sender says: names and types are often wrong, magic numbers never.

use super::ParseError;

/// A format we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `text/plain`
    Plain,
    /// `text/markdown`
    Markdown,
    /// `text/html`
    Html,
    /// `text/csv`, tabs and semicolons too.
    Csv,
    /// One JSON value a line.
    JsonLines,
    /// `application/pdf`
    Pdf,
    /// A zip package: DOCX, XLSX, PPTX or EPUB; its directory says which.
    Package,
}

/// First bytes of formats that people send and we do not read.
const UNREADABLE: [(&[u8], &str); 10] = [
    (b"\xD0\xCF\x11\xE0", "a legacy Office file; save it as DOCX, XLSX or PPTX"),
    (b"\x89PNG", "image/png"),
    (b"\xFF\xD8\xFF", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"\x1F\x8B", "gzip"),
    (b"7z\xBC\xAF", "7z"),
    (b"\xFD7zXZ", "xz"),
    (b"\x7FELF", "a program"),
    (b"{\\rtf", "RTF; save it as DOCX"),
];
/// Readers look for a PDF's mark in so many first bytes.
const PDF_MARK_WITHIN: usize = 1024;

impl Format {
    /// What is declared may be empty. By magic number; for text by media type, where it says something, else by the file name's ending, else by the first
    /// bytes (`<!doctype`, `<html`), plain text being what is left.
    ///
    /// Errors: `UnsupportedMedia` for what the bytes, the declared type or the file ending say is not read, or is not what it
    /// is called.
    pub fn detect(bytes: &[u8], media_type: &str, file_name: &str) -> Result<Self, ParseError> {
        let unsupported = |found: &str| ParseError::UnsupportedMedia { found: found.chars().take(80).collect() };
        // Text in a JSON body: it may well be about files that begin so.
        if file_name.is_empty() && media_type == "text/plain" {
            return Ok(Self::Plain);
        }
        if let Some((_, name)) = UNREADABLE.iter().find(|(magic, _)| bytes.starts_with(magic)) {
            return Err(unsupported(name));
        }
        if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
            return Ok(Self::Package);
        }
        let mut head = bytes[..bytes.len().min(PDF_MARK_WITHIN)].windows(5);
        let declared = Self::declared(media_type, file_name);
        if bytes.starts_with(b"%PDF-") || (declared == Declared::Binary(Self::Pdf) && head.any(|word| word == b"%PDF-"))
        {
            return Ok(Self::Pdf);
        }
        match declared {
            Declared::Text(format) => Ok(format),
            Declared::Binary(Self::Pdf) => Err(unsupported("called a PDF, but it is none")),
            Declared::Binary(_) => Err(unsupported("called an Office file or EPUB, but it is no zip package")),
            Declared::Unreadable(found) => Err(unsupported(&found)),
            Declared::Nothing => {
                let start = bytes.trim_ascii_start();
                let begins_with =
                    |word: &[u8]| start.get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word));
                Ok(if begins_with(b"<!doctype html") || begins_with(b"<html") { Self::Html } else { Self::Plain })
            }
        }
    }

    /// Plain text needs no parser, so none can go wrong: it is read where it is.
    pub fn is_plain(self) -> bool {
        self == Self::Plain
    }

    fn declared(media_type: &str, file_name: &str) -> Declared {
        let essence = media_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        match essence.as_str() {
            "text/markdown" | "text/x-markdown" => return Declared::Text(Self::Markdown),
            "text/html" | "application/xhtml+xml" => return Declared::Text(Self::Html),
            "text/csv" | "text/tab-separated-values" => return Declared::Text(Self::Csv),
            "application/jsonl" | "application/jsonlines" | "application/x-ndjson" | "application/x-jsonlines" => {
                return Declared::Text(Self::JsonLines);
            }
            "application/pdf" | "application/x-pdf" => return Declared::Binary(Self::Pdf),
            "application/epub+zip" | "application/zip" | "application/x-zip-compressed" => {
                return Declared::Binary(Self::Package);
            }
            office if office.starts_with("application/vnd.openxmlformats-officedocument.") => {
                return Declared::Binary(Self::Package);
            }
            // What clients send for files whose type they do not know, and Excel's for CSV: the name decides.
            "" | "text/plain" | "application/octet-stream" | "multipart/form-data" | "application/vnd.ms-excel" => {}
            other => return Declared::Unreadable(other.to_owned()),
        }
        let ending = file_name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).unwrap_or_default();
        match ending.as_str() {
            "md" | "markdown" | "mdown" => Declared::Text(Self::Markdown),
            "html" | "htm" | "xhtml" => Declared::Text(Self::Html),
            "csv" | "tsv" => Declared::Text(Self::Csv),
            "jsonl" | "ndjson" => Declared::Text(Self::JsonLines),
            "txt" | "text" | "log" | "rst" | "adoc" => Declared::Text(Self::Plain),
            "pdf" => Declared::Binary(Self::Pdf),
            "docx" | "xlsx" | "pptx" | "epub" => Declared::Binary(Self::Package),
            other if UNREADABLE_ENDINGS.contains(&other) => Declared::Unreadable(other.to_owned()),
            _ if essence == "text/plain" => Declared::Text(Self::Plain),
            _ => Declared::Nothing,
        }
    }
}

/// What the sender says.
#[derive(Debug, PartialEq, Eq)]
enum Declared {
    Text(Format),
    Binary(Format),
    Unreadable(String),
    Nothing,
}

/// Endings of formats people try. Naming them beats calling their bytes bad text.
const UNREADABLE_ENDINGS: [&str; 13] =
    ["doc", "odt", "ods", "ppt", "xls", "rtf", "zip", "gz", "png", "jpg", "jpeg", "gif", "mp3"];
