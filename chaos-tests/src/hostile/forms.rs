//! Forms that are none, and forms whose names lead elsewhere.

use super::{Hostile, part};

const TYPE: &str = "multipart/form-data; boundary=edge";
const PATH: &str = "/api/v1/documents";
/// Names that a careless program would open, print or put into a path.
const NAMES: [&str; 16] = [
    "../../../../etc/passwd",
    "..\\..\\windows\\system32\\config",
    "/dev/zero",
    "/proc/self/mem",
    "C:\\autoexec.bat",
    "file:///etc/shadow",
    "a\\\"b",
    "%2e%2e%2f%2e%2e%2f",
    "con.txt",
    ".htaccess",
    "x.txt; rm -rf *",
    "$(reboot).md",
    "{{7*7}}.html",
    "'; DROP TABLE documents; --",
    "\u{202e}txt.exe",
    "a\tb\u{7f}",
];

pub(super) fn corpus(collection: &str) -> Vec<Hostile> {
    let file = |bytes: &[u8]| part("form-data; name=\"file\"; filename=\"a.txt\"", bytes);
    let whole = |parts: &[Vec<u8>]| [parts.concat(), b"--edge--\r\n".to_vec()].concat();
    let into = part("form-data; name=\"collection\"", collection.as_bytes());
    let good = whole(&[into.clone(), file(b"hello")]);
    let mut all = vec![
        ("no boundary", "multipart/form-data", good.clone()),
        ("another boundary", "multipart/form-data; boundary=other", good.clone()),
        ("an empty boundary", "multipart/form-data; boundary=", good.clone()),
        ("a quoted boundary without end", "multipart/form-data; boundary=\"edge", good.clone()),
        ("no body", TYPE, Vec::new()),
        ("no parts", TYPE, b"--edge--\r\n".to_vec()),
        ("no end", TYPE, [into.clone(), file(b"hello")].concat()),
        ("cut in a head", TYPE, b"--edge\r\ncontent-dispo".to_vec()),
        ("cut in a part", TYPE, good[..good.len() - 20].to_vec()),
        ("a head without a colon", TYPE, b"--edge\r\nnonsense\r\n\r\nx\r\n--edge--\r\n".to_vec()),
        ("a part without a name", TYPE, whole(&[part("form-data", b"x")])),
        ("an empty name", TYPE, whole(&[part("form-data; name=\"\"", b"x")])),
        ("lines that end in LF only", TYPE, String::from_utf8_lossy(&good).replace("\r\n", "\n").into_bytes()),
        ("a long preamble", TYPE, [vec![b'x'; 200_000], b"\r\n".to_vec(), good.clone()].concat()),
        ("two files", TYPE, whole(&[into.clone(), file(b"one"), file(b"two")])),
        ("two collections", TYPE, whole(&[into.clone(), into.clone(), file(b"x")])),
        ("an unknown field", TYPE, whole(&[part("form-data; name=\"colour\"", b"x"), file(b"x")])),
        ("metadata that is no JSON", TYPE, whole(&[part("form-data; name=\"metadata\"", b"{"), file(b"x")])),
        ("metadata that is an array", TYPE, whole(&[part("form-data; name=\"metadata\"", b"[1]"), file(b"x")])),
        (
            "deep metadata",
            TYPE,
            whole(&[part("form-data; name=\"metadata\"", "{\"a\":".repeat(50_000).as_bytes()), file(b"x")]),
        ),
        ("no file", TYPE, whole(std::slice::from_ref(&into))),
        ("an empty file", TYPE, whole(&[into.clone(), file(b"")])),
        ("ten thousand parts", TYPE, whole(&vec![part("form-data; name=\"title\"", b"x"); 10_000])),
        ("a form within a form", TYPE, whole(&[into.clone(), file(&good)])),
        ("a head of 100 kB", TYPE, whole(&[part(&format!("form-data; name=\"{}\"", "x".repeat(100_000)), b"x")])),
        ("a NUL in a name", TYPE, whole(&[part("form-data; name=\"a\0b\"", b"x")])),
        (
            "a name that is no UTF-8",
            TYPE,
            [b"--edge\r\ncontent-disposition: form-data; name=\"\xff\xfe\"\r\n\r\nx\r\n--edge--\r\n".to_vec()].concat(),
        ),
        ("a title that is no UTF-8", TYPE, whole(&[part("form-data; name=\"title\"", b"\xff\xfe\xfd"), file(b"x")])),
        ("a title of a megabyte", TYPE, whole(&[part("form-data; name=\"title\"", &vec![b't'; 1 << 20]), file(b"x")])),
        ("an id of a megabyte", TYPE, whole(&[part("form-data; name=\"id\"", &vec![b'i'; 1 << 20]), file(b"x")])),
        (
            "a collection that leads elsewhere",
            TYPE,
            whole(&[part("form-data; name=\"collection\"", b"../c"), file(b"x")]),
        ),
    ];
    let boundary = format!("multipart/form-data; boundary={}", "e".repeat(5000));
    all.push(("a boundary of 5 kB", &boundary, good.clone()));
    let mut corpus: Vec<Hostile> = all
        .into_iter()
        .map(|(name, content_type, body)| Hostile::post(format!("form: {name}"), PATH, content_type, &body))
        .collect();
    for (number, name) in NAMES.iter().enumerate() {
        corpus.push(Hostile::file(&format!("file name {number}"), collection, name, b"harmless words"));
        let id = [into.clone(), part("form-data; name=\"id\"", name.as_bytes()), file(b"harmless words")];
        corpus.push(Hostile::post(format!("id {number}"), PATH, TYPE, &whole(&id)));
    }
    corpus
}
