//! Zip packages: bombs, lies about sizes, names that lead elsewhere, and XML that is no better.

use std::io::{Cursor, Write};

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::{Hostile, damaged};

const SEED: u64 = 20_252;
const DOCX: &str = "word/document.xml";
const BODY: &str = "<w:document><w:body><w:p><w:r><w:t>Harbour words</w:t></w:r></w:p></w:body></w:document>";

/// A package of these entries.
pub fn package(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        // A name that occurs twice is refused by the writer: the corpus has such packages as bytes.
        if writer.start_file(*name, SimpleFileOptions::default()).is_ok() {
            let _ = writer.write_all(bytes);
        }
    }
    writer.finish().map(Cursor::into_inner).unwrap_or_default()
}

fn docx(document: &str) -> Vec<u8> {
    package(&[(DOCX, document.as_bytes())])
}

/// The same bytes where every `from` is `to`; both of one length, so that offsets stay.
fn patched(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut patched = bytes.to_vec();
    let places: Vec<usize> =
        bytes.windows(from.len()).enumerate().filter(|(_, window)| *window == from).map(|(place, _)| place).collect();
    for place in places {
        patched[place..place + to.len()].copy_from_slice(to);
    }
    patched
}

fn sheet(rows: &str) -> Vec<u8> {
    let relations = "<Relationships><Relationship Id=\"r1\" \
        Type=\"http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet\" Target=\"worksheets/a.xml\"/></Relationships>";
    let workbook = "<workbook xmlns:r=\"http://schemas.openxmlformats.org/officeDocument/2006/relationships\"><sheets>\
        <sheet name=\"S\" sheetId=\"1\" r:id=\"r1\"/></sheets></workbook>";
    package(&[
        ("xl/workbook.xml", workbook.as_bytes()),
        ("xl/_rels/workbook.xml.rels", relations.as_bytes()),
        ("xl/worksheets/a.xml", format!("<worksheet><sheetData>{rows}</sheetData></worksheet>").as_bytes()),
    ])
}

fn epub(chapters: &str) -> Vec<u8> {
    let container = "<container><rootfiles><rootfile full-path=\"a.opf\"/></rootfiles></container>";
    let book =
        format!("<package><metadata/><manifest>{chapters}</manifest><spine><itemref idref=\"c\"/></spine></package>");
    package(&[("META-INF/container.xml", container.as_bytes()), ("a.opf", book.as_bytes())])
}

pub(super) fn corpus(collection: &str) -> Vec<Hostile> {
    let good = docx(BODY);
    let mut all = damaged(&good, 4, SEED);
    let spaces = vec![b' '; 140 << 20];
    let many: Vec<String> = (0..20_000).map(|number| format!("{number}.xml")).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), b"".as_slice())).collect();
    let inner = package(&[(DOCX, &spaces)]);
    let laughs: String =
        (1..10).map(|level| format!("<!ENTITY l{level} \"{}\">", format!("&l{};", level - 1).repeat(10))).collect();
    let further: Vec<(&str, Vec<u8>)> = vec![
        ("a bomb", package(&[(DOCX, &spaces)])),
        ("a bomb of many parts", package(&[(DOCX, BODY.as_bytes()), ("word/styles.xml", &spaces)])),
        ("a bomb in a workbook", package(&[("xl/workbook.xml", b"<workbook/>"), ("xl/media/a", &spaces)])),
        ("a bomb in a book", package(&[("META-INF/container.xml", &spaces)])),
        ("a bomb within", package(&[("word/embeddings/a.docx", &inner), (DOCX, BODY.as_bytes())])),
        ("twenty thousand entries", package(&many)),
        ("nothing but an end", b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec()),
        ("only a beginning", b"PK\x03\x04".to_vec()),
        (
            "names that lead elsewhere",
            package(&[("../../../etc/cron.d/a", b"x"), ("/etc/passwd", b"x"), (DOCX, BODY.as_bytes())]),
        ),
        ("a part elsewhere", epub("<item id=\"c\" href=\"../../../../etc/passwd\"/>")),
        ("a part on the network", epub("<item id=\"c\" href=\"http://127.0.0.1:1/x\"/>")),
        ("a part that is missing", epub("<item id=\"c\" href=\"c.xhtml\"/>")),
        ("a part that is the book", epub("<item id=\"c\" href=\"a.opf\"/>")),
        ("a thousand laughs", docx(&format!("<!DOCTYPE x [<!ENTITY l0 \"ha\">{laughs}]><w:t>&l9;</w:t>"))),
        (
            "an outside entity",
            docx("<!DOCTYPE x [<!ENTITY e SYSTEM \"file:///etc/passwd\">]><w:p><w:t>&e;</w:t></w:p>"),
        ),
        ("nested elements", docx(&"<w:p>".repeat(500_000))),
        ("nested tables", docx(&"<w:tbl><w:tr><w:tc>".repeat(100_000))),
        (
            "many attributes",
            docx(&format!("<w:p {}/>", (0..200_000).map(|n| format!("a{n}=\"x\" ")).collect::<String>())),
        ),
        ("the same attribute", docx(&format!("<w:p {}/>", "a=\"x\" ".repeat(200_000)))),
        ("an open tag", docx("<w:document><w:body><w:p")),
        ("a close without open", docx("</w:p></w:p></w:document>")),
        ("no XML", package(&[(DOCX, &[0xff; 1000])])),
        ("UTF-16", package(&[(DOCX, b"\xff\xfe<\0a\0>\0")])),
        ("a wrong checksum", patched(&good, &good[14..18], &[1, 2, 3, 4])),
        ("an encrypted entry", patched(&good, b"PK\x03\x04\x14\x00\x00", b"PK\x03\x04\x14\x00\x01")),
        ("an unknown method", patched(&good, b"\x08\x00", b"\x63\x00")),
        (
            "a cell at the far end",
            sheet(
                "<row r=\"1\"><c r=\"A1\"><v>1</v></c></row><row r=\"1048576\"><c r=\"XFD1048576\"><v>2</v></c></row>",
            ),
        ),
        ("a cell nowhere", sheet("<row r=\"0\"><c r=\"A0\"><v>1</v></c><c r=\"ZZZZZZ9\"><v>1</v></c></row>")),
        ("a text that is not there", sheet("<row r=\"1\"><c r=\"A1\" t=\"s\"><v>99</v></c></row>")),
        (
            "a cell that is no number",
            sheet("<row r=\"1\"><c r=\"A1\"><v>1e999999</v></c><c r=\"B1\"><v>x</v></c></row>"),
        ),
        (
            "a slide that is missing",
            package(&[
                ("ppt/presentation.xml", b"<p><sldId r:id=\"a\"/></p>"),
                ("ppt/_rels/presentation.xml.rels", b"<R><Relationship Id=\"a\" Target=\"slides/x.xml\"/></R>"),
            ]),
        ),
        (
            "a slide that is the presentation",
            package(&[
                ("ppt/presentation.xml", b"<p><sldId r:id=\"a\"/></p>"),
                ("ppt/_rels/presentation.xml.rels", b"<R><Relationship Id=\"a\" Target=\"presentation.xml\"/></R>"),
            ]),
        ),
        ("relations without a presentation", package(&[("ppt/presentation.xml", b"<p/>")])),
        ("an archive of nothing", package(&[("a.txt", b"x")])),
    ];
    all.extend(further.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)));
    all.iter().map(|(name, bytes)| Hostile::file(&format!("package {name}"), collection, "a.docx", bytes)).collect()
}
