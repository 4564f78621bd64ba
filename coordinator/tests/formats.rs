//! Documents as other programs write them, through the real child process; and what hostile ones do to it.

use std::io::{Cursor, Write};
use std::time::Duration;

use cluster_config::error::ErrorKind;
use coordinator::error::Error;
use coordinator::ingest::parse::Parsed;
use coordinator::ingest::sandbox::Sandbox;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

fn sandbox() -> Sandbox {
    Sandbox {
        program: env!("CARGO_BIN_EXE_susui-coordinator").into(),
        memory_bytes: 1 << 30,
        time: Duration::from_secs(20),
    }
}

async fn fixture(name: &str) -> Result<Parsed, Error> {
    let bytes = std::fs::read(format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).expect("fixture");
    // The name is withheld: the bytes must do.
    sandbox().parse(&bytes, "application/octet-stream", "upload").await
}

fn outline(parsed: &Parsed) -> Vec<(String, &str)> {
    parsed.sections.iter().map(|s| (s.heading_path.join(" > "), parsed.text[s.span.clone()].trim())).collect()
}

fn page_of(parsed: &Parsed, words: &str) -> Option<u32> {
    parsed.page_at(parsed.text.find(words).unwrap_or_else(|| panic!("no {words:?} in {}", parsed.text)))
}

fn zipped(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(*name, SimpleFileOptions::default()).expect("starts");
        writer.write_all(bytes).expect("writes");
    }
    writer.finish().expect("finishes").into_inner()
}

async fn refused(bytes: &[u8]) -> Error {
    sandbox().parse(bytes, "", "").await.expect_err("is refused")
}

#[tokio::test]
async fn a_pdf_has_its_text_title_and_pages() {
    let parsed = fixture("harbour.pdf").await.expect("parses");
    assert_eq!(parsed.title.as_deref(), Some("Harbour Handbook"));
    assert_eq!(parsed.pages.len(), 3);
    assert_eq!(page_of(&parsed, "ninety metres"), Some(1));
    assert_eq!(page_of(&parsed, "behind the"), Some(2));
    assert_eq!(page_of(&parsed, "three white flashes"), Some(3));
}

#[tokio::test]
async fn a_pdf_with_embedded_fonts_is_read_by_its_character_maps() {
    let parsed = fixture("unicode.pdf").await.expect("parses");
    assert_eq!(page_of(&parsed, "Größe und Übung: der Kran hebt zwölf Tonnen."), Some(1));
    assert_eq!(page_of(&parsed, "Ο φάρος στέκεται στο ακρωτήριο."), Some(2));
    let locked = fixture("locked.pdf").await.expect_err("needs a password").to_string();
    assert!(locked.contains("encrypted"), "{locked}");
}

#[tokio::test]
async fn a_word_document_has_headings_and_tables() {
    let parsed = fixture("crane.docx").await.expect("parses");
    assert_eq!(parsed.title.as_deref(), Some("Crane Manual"));
    assert_eq!(
        outline(&parsed),
        [
            (String::new(), "Crane Manual\n\nRead this before lifting."),
            ("Limits".into(), "Limits\n\nThe crane lifts twelve tonnes & no more.\nRadius | Load\n10 m | 12 t"),
            ("Limits > Wind".into(), "Wind\n\nStop above fifteen metres per second."),
        ]
    );
}

#[tokio::test]
async fn a_workbook_has_a_section_per_sheet_and_a_line_per_row() {
    let parsed = fixture("vessels.xlsx").await.expect("parses");
    let sheets = outline(&parsed);
    assert_eq!(sheets.len(), 2, "{sheets:?}");
    assert_eq!(
        sheets[0].1,
        "Vessels\nName: Aurora; Length: 88.5; Arrived: 2026-03-14; Moored: true\n\
         Name: Boreas; Length: 120; Arrived: 2026-03-15 06:30:00; Moored: false"
    );
    assert_eq!(sheets[1].0, "Notes");
    assert!(sheets[1].1.contains("The harbour master signs each line."), "{sheets:?}");
}

#[tokio::test]
async fn a_presentation_has_a_page_per_slide() {
    let parsed = fixture("pilots.pptx").await.expect("parses");
    assert_eq!(parsed.title.as_deref(), Some("Pilot Training"));
    assert_eq!((page_of(&parsed, "outer buoy"), page_of(&parsed, "stern line")), (Some(1), Some(2)));
    assert_eq!(parsed.sections.iter().map(|s| s.heading_path.join("")).collect::<Vec<_>>(), ["Arrival", "Departure"]);
}

#[tokio::test]
async fn a_book_has_its_chapters_in_order() {
    let parsed = fixture("sea.epub").await.expect("parses");
    assert_eq!(parsed.title.as_deref(), Some("Sea Stories"));
    assert_eq!(
        outline(&parsed),
        [
            ("The Storm".into(), "The Storm\nThe wind rose at dusk."),
            ("The Calm".into(), "The Calm\nBy morning the sea lay flat.")
        ]
    );
}

#[tokio::test]
async fn bombs_are_refused_at_their_bound() {
    let zeros = vec![b' '; 200 << 20];
    let document = refused(&zipped(&[("word/document.xml", &zeros)])).await;
    assert!(document.kind() == ErrorKind::TooLarge && document.to_string().contains("unpacks"), "{document}");
    let parts = (0..10_001).map(|number| (format!("x{number}"), b"".as_slice())).collect::<Vec<_>>();
    let parts: Vec<(&str, &[u8])> = parts.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
    assert_eq!(refused(&zipped(&parts)).await.kind(), ErrorKind::TooLarge);
    // calamine unpacks by itself: the size is checked before it may.
    let sheet = refused(&zipped(&[("xl/workbook.xml", b"<workbook/>"), ("xl/media/x", &zeros)])).await;
    assert_eq!(sheet.kind(), ErrorKind::TooLarge, "{sheet}");
}

#[tokio::test]
async fn broken_documents_are_refused_in_words() {
    for name in ["harbour.pdf", "crane.docx", "vessels.xlsx", "pilots.pptx", "sea.epub"] {
        let bytes = std::fs::read(format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).expect("fixture");
        for cut in [bytes.len() / 2, bytes.len() - 30] {
            if let Err(error) = sandbox().parse(&bytes[..cut], "", name).await {
                assert!(error.kind().is_deterministic(), "{name} cut at {cut}: {:?} {error}", error.kind());
            }
        }
    }
    let nested = format!("%PDF-1.4\n1 0 obj\n{}\nendobj\n", "[".repeat(3_000_000));
    assert!(refused(nested.as_bytes()).await.kind().is_deterministic());
    let archive = refused(&zipped(&[("readme.txt", b"x")])).await;
    assert_eq!(archive.kind(), ErrorKind::UnsupportedMedia, "{archive}");
}

/// The bounds that the kernel keeps: a child beyond them ends, and the document is named as the reason.
#[tokio::test]
async fn memory_and_time_are_bounded() {
    let text = vec![b'a'; 30 << 20];
    let page = [b"<p>", text.as_slice()].concat();
    let narrow = Sandbox { memory_bytes: 160 << 20, ..sandbox() };
    let denied = narrow.parse(&page, "text/html", "").await.expect_err("does not fit");
    assert!(denied.kind() == ErrorKind::TooLarge && denied.to_string().contains("160 MiB"), "{denied}");

    let quick = Sandbox { time: Duration::from_secs(1), ..sandbox() };
    // A page that draws a form 5,000 times, which draws another as often: 25 million drawings.
    let endless = drawing(&[form(Some(6), 5000), form(Some(7), 5000), form(None, 1)]);
    let slow = quick.parse(&endless, "", "").await.expect_err("is endless");
    assert!(slow.kind() == ErrorKind::TooLarge && slow.to_string().contains("1 s"), "{slow}");
    // A form that draws itself: deeper than any stack.
    let bottomless = drawing(&[form(Some(5), 1)]);
    let deep = sandbox().parse(&bottomless, "", "").await.expect_err("has no bottom");
    assert!(deep.kind().is_deterministic(), "{:?} {deep}", deep.kind());
}

/// Object 5 and following of a PDF whose one page draws object 5.
fn drawing(forms: &[String]) -> Vec<u8> {
    let mut objects = vec![
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>".to_owned(),
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 99 99] /Contents 4 0 R /Resources << /XObject << /F 5 0 R >> >> >>".to_owned(),
        "<< /Length 6 >>\nstream\n/F Do\n\nendstream".to_owned(),
    ];
    objects.extend_from_slice(forms);
    let mut text = "%PDF-1.4\n".to_owned();
    let mut offsets = Vec::new();
    for (position, object) in objects.iter().enumerate() {
        offsets.push(text.len());
        text.push_str(&format!("{} 0 obj\n{object}\nendobj\n", position + 1));
    }
    let start = text.len();
    text.push_str(&format!("xref\n0 {}\n0000000000 65535 f \n", offsets.len() + 1));
    offsets.iter().for_each(|offset| text.push_str(&format!("{offset:010} 00000 n \n")));
    let count = offsets.len() + 1;
    text.push_str(&format!("trailer\n<< /Size {count} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n"));
    text.into_bytes()
}

/// A form that draws object `next` so many times.
fn form(next: Option<u32>, times: usize) -> String {
    let (draws, resources) = match next {
        Some(next) => ("/F Do\n".repeat(times), format!("/Resources << /XObject << /F {next} 0 R >> >>")),
        None => ("q Q\n".repeat(times), "/Resources << >>".to_owned()),
    };
    let length = draws.len();
    format!(
        "<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] {resources} /Length {length} >>\nstream\n{draws}endstream"
    )
}
