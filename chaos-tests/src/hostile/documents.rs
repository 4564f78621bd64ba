//! Texts that are no text, and texts that cost more than they look.

use super::Hostile;

pub(super) fn corpus(collection: &str) -> Vec<Hostile> {
    let broken: [&[u8]; 10] = [
        b"\xff",
        b"caf\xe9",
        b"\xc0\xaf overlong",
        b"\xed\xa0\x80 surrogate",
        b"\xf4\x90\x80\x80 beyond Unicode",
        b"\xe2\x82 cut",
        b"\x80\x80\x80\x80",
        b"\xff\xfeA\0\x00\xd8",
        b"\xfe\xff\0",
        b"words\0words",
    ];
    let mut all = Vec::new();
    for (number, bytes) in broken.iter().enumerate() {
        for ending in ["txt", "md", "html", "csv", "jsonl"] {
            all.push(Hostile::file(&format!("broken {number} {ending}"), collection, &format!("a.{ending}"), bytes));
        }
        let json = [b"{\"text\":\"", *bytes, b"\"}"].concat();
        all.push(Hostile::post(format!("broken {number} json"), "/api/v1/documents", "application/json", &json));
    }
    let heavy: [(&str, &str, String); 14] = [
        ("nested elements", "html", "<div><b>".repeat(300_000)),
        ("an endless comment", "html", format!("<!--{}", "x".repeat(2_000_000))),
        ("an endless attribute", "html", format!("<a href=\"{}", "x".repeat(2_000_000))),
        ("unknown entities", "html", "&x;".repeat(300_000)),
        ("open brackets", "md", "[".repeat(300_000)),
        ("open emphasis", "md", "*a ".repeat(200_000)),
        ("nested quotes", "md", ">".repeat(100_000)),
        ("nested lists", "md", (0..2000).map(|depth| format!("{}- x\n", " ".repeat(depth))).collect()),
        ("backticks", "md", (1..1500).map(|count| format!("{} x ", "`".repeat(count))).collect()),
        ("one word", "txt", "a".repeat(3_000_000)),
        ("full stops", "txt", ". ".repeat(500_000)),
        ("combining marks", "txt", format!("a{}", "\u{301}".repeat(500_000))),
        ("wide rows", "csv", format!("{}\n", "x,".repeat(500_000)).repeat(2)),
        ("an open quotation", "csv", format!("a,\"{}", "x,\n".repeat(500_000))),
    ];
    all.extend(heavy.iter().map(|(name, ending, text)| {
        Hostile::file(&format!("heavy {name}"), collection, &format!("a.{ending}"), text.as_bytes())
    }));
    let deep = "[".repeat(500_000);
    all.push(Hostile::file("heavy deep record", collection, "a.jsonl", deep.as_bytes()));
    all.push(Hostile::file("only white space", collection, "a.txt", &vec![b' '; 100_000]));
    all.push(Hostile::file("only marks", collection, "a.md", b"# \n## \n###"));
    all
}
