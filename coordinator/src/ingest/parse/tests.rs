use proptest::prelude::*;

use super::*;

fn markdown(source: &str) -> Parsed {
    parse(source.as_bytes(), "text/markdown", "").expect("parses")
}

fn html(source: &str) -> Parsed {
    parse(source.as_bytes(), "text/html; charset=utf-8", "").expect("parses")
}

fn outline(parsed: &Parsed) -> Vec<(String, &str)> {
    parsed.sections.iter().map(|s| (s.heading_path.join(" > "), parsed.text[s.span.clone()].trim())).collect()
}

#[test]
fn the_format_is_what_the_bytes_say_then_the_type_then_the_name() {
    type Case = (&'static str, &'static str, &'static [u8], Option<Format>);
    let cases: [Case; 27] = [
        ("text/markdown; charset=utf-8", "a.txt", b"x", Some(Format::Markdown)),
        ("TEXT/HTML", "", b"x", Some(Format::Html)),
        ("text/plain", "a.md", b"x", Some(Format::Markdown)),
        ("text/plain", "", b"<html>", Some(Format::Plain)),
        ("", "dir.d/page.HTM", b"x", Some(Format::Html)),
        ("", "", b"  <!DOCTYPE html><p>", Some(Format::Html)),
        ("", "", b"plain", Some(Format::Plain)),
        ("", "README", b"plain", Some(Format::Plain)),
        ("application/octet-stream", "a.md", b"x", Some(Format::Markdown)),
        ("text/csv", "", b"a,b", Some(Format::Csv)),
        ("application/vnd.ms-excel", "a.CSV", b"a,b", Some(Format::Csv)),
        ("", "a.jsonl", b"{}", Some(Format::JsonLines)),
        // The bytes go before the name, in both directions.
        ("text/plain", "a.txt", b"%PDF-1.7", Some(Format::Pdf)),
        ("application/pdf", "", b"\n\n%PDF-1.4", Some(Format::Pdf)),
        ("", "notes.md", b"a %PDF-1.4 begins with a mark", Some(Format::Markdown)),
        ("text/html", "a.html", b"PK\x03\x04", Some(Format::Package)),
        ("text/plain", "", b"GIF89a is how a picture begins", Some(Format::Plain)),
        ("application/pdf", "a.txt", b"x", None),
        ("", "a.pdf", b"<html>", None),
        ("", "a.docx", b"plain", None),
        ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", "", b"x", None),
        ("", "a.txt", b"\x89PNG\r\n", None),
        ("", "a.doc", b"\xD0\xCF\x11\xE0", None),
        ("", "a.txt", b"\x1F\x8B\x08", None),
        ("image/png", "", b"x", None),
        ("", "a.mp3", b"x", None),
        ("\u{1F600}/;;", "\u{1F600}.", b"x", None),
    ];
    for (media_type, name, bytes, expected) in cases {
        assert_eq!(Format::detect(bytes, media_type, name).ok(), expected, "{media_type:?} {name:?} {bytes:?}");
    }
}

#[test]
fn what_is_no_text_is_refused_by_kind() {
    let refuse = |bytes: &[u8], media_type: &str| parse(bytes, media_type, "").expect_err("refused");
    assert_eq!(refuse(b"\x7fELF\x00\x01\xff", "").kind(), ErrorKind::UnsupportedMedia);
    assert_eq!(refuse(b"a\0b", ""), ParseError::UnsupportedMedia { found: "binary data".into() });
    assert_eq!(refuse(b"caf\xe9", ""), ParseError::Encoding { encoding: "UTF-8".into(), offset: 3 });
    assert_eq!(refuse(b"\xff\xfeA\0\x00\xd8", ""), ParseError::Encoding { encoding: "UTF-16".into(), offset: 4 });
    assert_eq!(refuse(b"\xff\xfeA", ""), ParseError::Encoding { encoding: "UTF-16".into(), offset: 2 });
    assert!(matches!(refuse(b"x", "text/plain; charset=koi8-r"), ParseError::UnsupportedMedia { .. }));
    for empty in [&b""[..], b" \n\t ", b"\xef\xbb\xbf"] {
        assert_eq!(refuse(empty, ""), ParseError::Empty);
    }
    assert_eq!(refuse(b"<script>x</script><style>y</style>", "text/html"), ParseError::Empty);
    assert_eq!(refuse(b"---\ntitle: x\n---\n", "text/markdown"), ParseError::Empty);
    let huge = vec![b'a'; limits::DOCUMENT_BYTES_MAX + 1];
    assert_eq!(refuse(&huge, "").kind(), ErrorKind::TooLarge);
}

#[test]
fn other_encodings_become_utf8() {
    let text = |bytes: &[u8], media_type| parse(bytes, media_type, "").expect("parses").text;
    assert_eq!(text(b"\xef\xbb\xbfabc", ""), "abc");
    assert_eq!(text(b"\xff\xfeh\0\xe9\0", ""), "hé");
    assert_eq!(text(b"\xfe\xff\0h\0\xe9", ""), "hé");
    assert_eq!(text(b"caf\xe9", "text/plain; charset=\"ISO-8859-1\""), "café");
}

#[test]
fn markdown_headings_make_sections_over_the_source() {
    let source = "lead\n\n# Guide\nintro\n\n## Setup `now`\n```\n# not a heading\n```\n\nDeep\n----\n### A\n#\n## Setup 2\nend\n";
    let parsed = markdown(source);
    assert_eq!(parsed.text, source);
    assert_eq!(parsed.title.as_deref(), Some("Guide"));
    assert_eq!(
        outline(&parsed),
        [
            (String::new(), "lead"),
            ("Guide".into(), "# Guide\nintro"),
            ("Guide > Setup now".into(), "## Setup `now`\n```\n# not a heading\n```"),
            ("Guide > Deep".into(), "Deep\n----"),
            ("Guide > Deep > A".into(), "### A"),
            (String::new(), "#"),
            ("Setup 2".into(), "## Setup 2\nend"),
        ]
    );
}

#[test]
fn front_matter_gives_a_title_and_is_no_text() {
    let parsed = markdown("---\nlayout: page\ntitle: \"The  Manual\"\n---\n\nbody\n");
    assert_eq!((parsed.title.as_deref(), parsed.text.trim()), (Some("The Manual"), "body"));
    assert_eq!(outline(&parsed), [(String::new(), "body")]);
}

#[test]
fn html_becomes_what_a_reader_sees() {
    let parsed = html(
        "<!doctype html><head><title>A &amp; B</title><style>p{}</style><script>if (a</b/) '</p>'</script></head>\
         <body><p>one\n  <b>two</b>three<br>four</p><!-- no --><h2>Head <i>line</i></h2><ul><li>x<li>y</ul>\
         <table><tr><td>1</td><td>2</td></tr></table><pre>a\n  b</pre><h3>Sub</h3>caf&eacute;",
    );
    assert_eq!(parsed.title.as_deref(), Some("A & B"));
    assert_eq!(parsed.text, "one twothree\nfour\n\nHead line\nx\ny\n1 2\na\n  b\n\nSub\ncafé");
    assert_eq!(
        outline(&parsed),
        [
            (String::new(), "one twothree\nfour"),
            ("Head line".into(), "Head line\nx\ny\n1 2\na\n  b"),
            ("Head line > Sub".into(), "Sub\ncafé"),
        ]
    );
    assert_eq!(html("<h1>First</h1>x").title.as_deref(), Some("First"));
    assert_eq!(html("<p>a<title>svg</p>b").title.as_deref(), Some("svg</p>b"), "an open title swallows the rest");
}

#[test]
fn deep_nesting_costs_no_more_than_its_bytes() {
    // Were it the square of them, this test would not come back; the text proves that all of it was read.
    let source = format!("{}deep{}", "<div><b>".repeat(300_000), "</b></div>".repeat(1000));
    assert_eq!(html(&source).text, "deep");
    let quoted = format!("{}deep", "> ".repeat(50_000));
    assert!(markdown(&quoted).text.ends_with("deep"));
}

fn check(parsed: &Parsed) {
    let mut end = 0;
    let mut uncovered = String::new();
    for section in &parsed.sections {
        assert!(section.span.start >= end && section.span.end <= parsed.text.len());
        assert!(!parsed.text[section.span.clone()].trim().is_empty());
        uncovered.push_str(&parsed.text[end..section.span.start]);
        end = section.span.end;
        assert!(section.heading_path.len() <= limits::HEADING_DEPTH_MAX);
    }
    uncovered.push_str(&parsed.text[end..]);
    assert!(uncovered.trim().is_empty(), "{uncovered:?} is in no section");
}

proptest! {
    #[test]
    fn any_markdown_keeps_its_text(source in "([#\\-=>`*\\[\\]()| \n\t_]|[a-c]|é|---\n|# |\r\n|```){0,60}") {
        if let Ok(parsed) = parse(source.as_bytes(), "text/markdown", "") {
            check(&parsed);
            prop_assert!(source.ends_with(&parsed.text));
        }
    }

    #[test]
    fn any_html_gives_ordered_sections(source in "(<h1>|</h1>|<h2>|<h3|<p>|</p>|<pre>|</pre>|<title>|</title>|<script>|</script>|<!--|-->|&amp;|&#x|<|>| |\n|[a-c]|é|\"){0,60}") {
        if let Ok(parsed) = parse(source.as_bytes(), "text/html", "") {
            check(&parsed);
        }
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for media_type in ["", "text/plain", "text/markdown", "text/html", "text/csv", "application/jsonl"] {
            if let Ok(parsed) = parse(&bytes, media_type, "") {
                check(&parsed);
            }
        }
    }
}

#[test]
fn rows_stand_behind_their_columns_names() {
    let csv = |source: &str| parse(source.as_bytes(), "text/csv", "").expect("parses").text;
    assert_eq!(csv("name,length\nAurora,88.5\nBoreas,\n"), "name: Aurora; length: 88.5\nname: Boreas");
    assert_eq!(csv("name;remark\n\"A; B\";\"two\nlines\"\n"), "name: A; B; remark: two lines");
    assert_eq!(csv("1,2\n3,4\n"), "1; 2\n3; 4", "numbers name nothing");
    assert_eq!(csv("only,names\n"), "only; names");
    assert_eq!(csv("a,b\nx,y,z\n"), "a: x; b: y; z", "a row longer than the first");
}

#[test]
fn json_lines_are_records() {
    let lines = |source: &str| parse(source.as_bytes(), "application/jsonl", "");
    let parsed =
        lines("{\"title\":\"Lift\",\"text\":\"The wing lifts.\"}\n\n{\"a\":{\"b\":[1,\"x\"]},\"c\":null,\"d\":true}\n");
    let parsed = parsed.expect("parses");
    assert_eq!(parsed.text, "Lift\n\nThe wing lifts.\n\na.b: 1; a.b: x; d: true");
    assert_eq!(parsed.sections[0].heading_path, ["Lift"]);
    let refused = lines("{}\n{\"a\":").expect_err("is refused").to_string();
    assert!(refused.contains("line 2"), "{refused}");
}

#[test]
fn pages_are_counted_from_one() {
    let parsed = Parsed { text: "aabb".into(), pages: vec![0, 2], ..Parsed::default() };
    assert_eq!([0, 1, 2, 3].map(|offset| parsed.page_at(offset)), [Some(1), Some(1), Some(2), Some(2)]);
    assert_eq!(Parsed::plain(None, "x".into()).page_at(0), None);
}
