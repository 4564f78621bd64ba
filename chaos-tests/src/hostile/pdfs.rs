//! PDFs: cut, flipped, endless, bottomless, and compressed beyond reason.

use std::io::Write;

use super::{Hostile, damaged};

const SEED: u64 = 20_251;

/// A PDF of these objects, the first being its catalogue.
pub fn pdf(objects: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = b"%PDF-1.4\n".to_vec();
    let mut offsets = Vec::new();
    for (position, object) in objects.iter().enumerate() {
        offsets.push(bytes.len());
        bytes.extend_from_slice(format!("{} 0 obj\n", position + 1).as_bytes());
        bytes.extend_from_slice(object);
        bytes.extend_from_slice(b"\nendobj\n");
    }
    let start = bytes.len();
    let count = offsets.len() + 1;
    bytes.extend_from_slice(format!("xref\n0 {count}\n0000000000 65535 f \n").as_bytes());
    for offset in offsets {
        bytes.extend_from_slice(format!("{offset:010} 00000 n \n").as_bytes());
    }
    let end = format!("trailer\n<< /Size {count} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n");
    bytes.extend_from_slice(end.as_bytes());
    bytes
}

fn stream(extra: &str, data: &[u8]) -> Vec<u8> {
    let head = format!("<< {extra} /Length {} >>\nstream\n", data.len());
    [head.as_bytes(), data, b"\nendstream"].concat()
}

/// A page with this content; object 5 is its font or whatever `resources` names.
fn page(pages: &str, resources: &str, content: Vec<u8>, further: Vec<Vec<u8>>) -> Vec<u8> {
    let mut objects = vec![
        b"<< /Type /Catalog /Pages 2 0 R >>".to_vec(),
        format!("<< /Type /Pages {pages} >>").into_bytes(),
        format!("<< /Type /Page /Parent 2 0 R /MediaBox [0 0 99 99] /Contents 4 0 R /Resources << {resources} >> >>")
            .into_bytes(),
        content,
    ];
    objects.extend(further);
    pdf(&objects)
}

const ONE_PAGE: &str = "/Kids [3 0 R] /Count 1";
const FONT: &str = "/Font << /F 5 0 R >>";

fn font() -> Vec<u8> {
    b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_vec()
}

fn form(next: u32, times: usize) -> Vec<u8> {
    let resources =
        format!("/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /F {next} 0 R >> >>");
    stream(&resources, "/F Do\n".repeat(times).as_bytes())
}

fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    // A Vec takes everything.
    encoder.write_all(bytes).and_then(|()| encoder.finish()).unwrap_or_default()
}

pub(super) fn corpus(collection: &str) -> Vec<Hostile> {
    let good = page(ONE_PAGE, FONT, stream("", b"BT /F 12 Tf (Harbour words) Tj ET"), vec![font()]);
    let mut all = damaged(&good, 9, SEED);
    let zeros = deflated(&vec![b' '; 140 << 20]);
    let operators = deflated(&b"BT /F 12 Tf (x) Tj ET\n".repeat(2_000_000));
    let xobject = "/XObject << /F 5 0 R >>";
    let do_it = || stream("", b"/F Do");
    let further = vec![
        ("only a mark", b"%PDF-1.7\n".to_vec()),
        ("nothing behind the mark", [b"%PDF-1.7\n".as_slice(), &[0; 10_000]].concat()),
        ("nested arrays", [b"%PDF-1.4\n1 0 obj\n".as_slice(), &b"[".repeat(500_000)].concat()),
        ("nested dictionaries", [b"%PDF-1.4\n1 0 obj\n".as_slice(), &b"<</A ".repeat(300_000)].concat()),
        ("a page that is its own parent", page("/Kids [2 0 R] /Count 1", FONT, stream("", b""), vec![font()])),
        ("a billion pages", page("/Kids [3 0 R] /Count 1000000000", FONT, stream("", b""), vec![font()])),
        ("the same page many times", page(&format!("/Kids [{}] /Count 20000", "3 0 R ".repeat(20_000)), FONT, stream("", b"BT /F 12 Tf (x) Tj ET"), vec![font()])),
        ("a form that draws itself", page(ONE_PAGE, xobject, do_it(), vec![form(5, 1)])),
        ("forms that draw each other", page(ONE_PAGE, xobject, do_it(), vec![form(6, 2000), form(7, 2000), form(5, 2000)])),
        ("a bomb of spaces", page(ONE_PAGE, FONT, stream("/Filter /FlateDecode", &zeros), vec![font()])),
        ("a bomb of operators", page(ONE_PAGE, FONT, stream("/Filter /FlateDecode", &operators), vec![font()])),
        ("a bomb within a bomb", page(ONE_PAGE, FONT, stream("/Filter [/FlateDecode /FlateDecode]", &deflated(&zeros)), vec![font()])),
        ("a length beyond the file", page(ONE_PAGE, FONT, b"<< /Length 999999999 >>\nstream\nx".to_vec(), vec![font()])),
        ("a negative length", page(ONE_PAGE, FONT, b"<< /Length -5 >>\nstream\nx\nendstream".to_vec(), vec![font()])),
        ("a length that refers to itself", page(ONE_PAGE, FONT, b"<< /Length 4 0 R >>\nstream\nx\nendstream".to_vec(), vec![font()])),
        ("a font that is missing", page(ONE_PAGE, FONT, stream("", b"BT /F 12 Tf (x) Tj ET"), vec![b"null".to_vec()])),
        ("a font that is a number", page(ONE_PAGE, FONT, stream("", b"BT /F 12 Tf (x) Tj ET"), vec![b"7".to_vec()])),
        ("a map of characters that is none", page(ONE_PAGE, FONT, stream("", b"BT /F 12 Tf (x) Tj ET"), vec![b"<< /Type /Font /Subtype /Type0 /BaseFont /X /Encoding /Identity-H /ToUnicode 4 0 R /DescendantFonts [5 0 R] >>".to_vec()])),
        ("a filter nobody knows", page(ONE_PAGE, FONT, stream("/Filter /Nonsense", b"x"), vec![font()])),
        ("an encryption nobody knows", String::from_utf8_lossy(&good).replace("/Root", "/Encrypt << /Filter /X /V 99 >> /Root").into_bytes()),
        ("operators without operands", page(ONE_PAGE, FONT, stream("", &b"Tj TJ Tf Td cm Do ' \" ".repeat(1000)), vec![font()])),
        ("numbers without end", page(ONE_PAGE, FONT, stream("", &[b'9'; 200_000]), vec![font()])),
    ];
    all.extend(further.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)));
    all.iter().map(|(name, bytes)| Hostile::file(&format!("PDF {name}"), collection, "a.pdf", bytes)).collect()
}
