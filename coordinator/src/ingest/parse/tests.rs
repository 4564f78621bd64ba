use proptest::prelude::*;

use super::*;

fn markdown(source: &str) -> Parsed {
    parse(source.as_bytes(), Some("text/markdown"), None).expect("parses")
}

fn html(source: &str) -> Parsed {
    parse(source.as_bytes(), Some("text/html; charset=utf-8"), None).expect("parses")
}

fn outline(parsed: &Parsed) -> Vec<(String, &str)> {
    parsed.sections.iter().map(|s| (s.heading_path.join(" > "), parsed.text[s.span.clone()].trim())).collect()
}

#[test]
fn the_format_is_found_by_type_then_name_then_bytes() {
    type Case = (Option<&'static str>, Option<&'static str>, &'static str, Option<Format>);
    let cases: [Case; 12] = [
        (Some("text/markdown; charset=utf-8"), Some("a.txt"), "x", Some(Format::Markdown)),
        (Some("TEXT/HTML"), None, "x", Some(Format::Html)),
        (Some("text/plain"), Some("a.md"), "x", Some(Format::Markdown)),
        (Some("text/plain"), None, "<html>", Some(Format::Plain)),
        (None, Some("dir.d/page.HTM"), "x", Some(Format::Html)),
        (None, None, "  <!DOCTYPE html><p>", Some(Format::Html)),
        (None, None, "plain", Some(Format::Plain)),
        (None, Some("README"), "plain", Some(Format::Plain)),
        (Some("application/octet-stream"), Some("a.md"), "x", Some(Format::Markdown)),
        (Some("application/pdf"), Some("a.txt"), "x", None),
        (None, Some("a.pdf"), "%PDF-1.7", None),
        (Some("image/png"), None, "x", None),
    ];
    for (media_type, name, bytes, expected) in cases {
        assert_eq!(
            Format::detect(bytes.as_bytes(), media_type, name).ok(),
            expected,
            "{media_type:?} {name:?} {bytes}"
        );
    }
}

#[test]
fn what_is_no_text_is_refused_by_kind() {
    let refuse = |bytes: &[u8], media_type: Option<&str>| parse(bytes, media_type, None).expect_err("refused");
    assert_eq!(refuse(b"\x7fELF\x00\x01\xff", None).kind(), ErrorKind::UnsupportedMedia);
    assert_eq!(refuse(b"a\0b", None), ParseError::UnsupportedMedia { found: "binary data".into() });
    assert_eq!(refuse(b"caf\xe9", None), ParseError::Encoding { encoding: "UTF-8", offset: 3 });
    assert_eq!(refuse(b"\xff\xfeA\0\x00\xd8", None), ParseError::Encoding { encoding: "UTF-16", offset: 4 });
    assert_eq!(refuse(b"\xff\xfeA", None), ParseError::Encoding { encoding: "UTF-16", offset: 2 });
    assert!(matches!(refuse(b"x", Some("text/plain; charset=koi8-r")), ParseError::UnsupportedMedia { .. }));
    for empty in [&b""[..], b" \n\t ", b"\xef\xbb\xbf"] {
        assert_eq!(refuse(empty, None), ParseError::Empty);
    }
    assert_eq!(refuse(b"<script>x</script><style>y</style>", Some("text/html")), ParseError::Empty);
    assert_eq!(refuse(b"---\ntitle: x\n---\n", Some("text/markdown")), ParseError::Empty);
    let huge = vec![b'a'; limits::DOCUMENT_BYTES_MAX + 1];
    assert_eq!(refuse(&huge, None).kind(), ErrorKind::TooLarge);
}

#[test]
fn other_encodings_become_utf8() {
    let text = |bytes: &[u8], media_type| parse(bytes, media_type, None).expect("parses").text;
    assert_eq!(text(b"\xef\xbb\xbfabc", None), "abc");
    assert_eq!(text(b"\xff\xfeh\0\xe9\0", None), "hé");
    assert_eq!(text(b"\xfe\xff\0h\0\xe9", None), "hé");
    assert_eq!(text(b"caf\xe9", Some("text/plain; charset=\"ISO-8859-1\"")), "café");
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
        if let Ok(parsed) = parse(source.as_bytes(), Some("text/markdown"), None) {
            check(&parsed);
            prop_assert!(source.ends_with(&parsed.text));
        }
    }

    #[test]
    fn any_html_gives_ordered_sections(source in "(<h1>|</h1>|<h2>|<h3|<p>|</p>|<pre>|</pre>|<title>|</title>|<script>|</script>|<!--|-->|&amp;|&#x|<|>| |\n|[a-c]|é|\"){0,60}") {
        if let Ok(parsed) = parse(source.as_bytes(), Some("text/html"), None) {
            check(&parsed);
        }
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for media_type in [None, Some("text/plain"), Some("text/markdown"), Some("text/html")] {
            if let Ok(parsed) = parse(&bytes, media_type, None) {
                check(&parsed);
            }
        }
    }
}
