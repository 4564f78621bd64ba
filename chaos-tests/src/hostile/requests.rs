//! Requests that are malformed themselves: heads, paths, lengths, and bodies that never come.

use super::Hostile;

fn get(name: &str, path: &str) -> Hostile {
    Hostile::raw(format!("path {name}"), format!("GET {path} HTTP/1.1\r\nhost: susui\r\nconnection: close\r\n\r\n"))
}

fn headed(name: &str, further: &str) -> Hostile {
    let head = format!("GET /api/v1/collections HTTP/1.1\r\nhost: susui\r\nconnection: close\r\n{further}\r\n");
    Hostile::raw(format!("head {name}"), head)
}

fn body(name: &str, headers: &str, body: &[u8]) -> Hostile {
    let head = format!(
        "POST /api/v1/documents HTTP/1.1\r\nhost: susui\r\nconnection: close\r\ncontent-type: application/json\r\n{headers}\r\n"
    );
    Hostile::raw(format!("body {name}"), [head.as_bytes(), body].concat())
}

pub(super) fn corpus(collection: &str) -> Vec<Hostile> {
    let long = "x".repeat(100_000);
    let mut all = vec![
        get("up", "/api/v1/documents/..%2f..%2f..%2fetc%2fpasswd"),
        get("up twice encoded", "/api/v1/documents/%252e%252e%252f"),
        get("up in the open", "/api/v1/../../../../etc/passwd"),
        get("NUL", "/api/v1/documents/%00"),
        get("broken UTF-8", "/api/v1/documents/%ff%fe"),
        get("broken escape", "/api/v1/documents/%zz"),
        get("of 100 kB", &format!("/api/v1/documents/{long}")),
        get("with a query of 100 kB", &format!("/api/v1/documents?cursor={long}")),
        get("with broken parameters", "/api/v1/documents?limit=-1&cursor=%ff"),
        get("collection up", "/api/v1/collections/..%2f.."),
        get("job", "/api/v1/jobs/..%2f..%2f"),
        get("job events", "/api/v1/jobs/%00/events"),
        get("shard", "/api/v1/shards/..%2f/0:digest"),
        headed("one header of 100 kB", &format!("x-long: {long}\r\n")),
        headed("five thousand headers", &(0..5000).map(|number| format!("x-{number}: y\r\n")).collect::<String>()),
        headed("a header name with spaces", "x y z: 1\r\n"),
        headed("a header without a colon", "nonsense\r\n"),
        headed("a header with NUL", "x: a\0b\r\n"),
        headed("a folded header", "x: a\r\n  b\r\n"),
        headed("two lengths", "content-length: 5\r\ncontent-length: 7\r\n"),
        headed("a request id of 50 kB", &format!("x-request-id: {}\r\n", "i".repeat(50_000))),
        headed("a broken trace", "traceparent: 00-zz-zz-zz\r\n"),
        Hostile::raw("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        Hostile::raw("no HTTP but words", b"hello, is it me you are looking for\r\n\r\n".to_vec()),
        Hostile::raw("an unknown version", b"GET / HTTP/9.9\r\n\r\n".to_vec()),
        Hostile::raw(
            "an unknown method",
            b"BREW /api/v1/documents HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".to_vec(),
        ),
        body("no length", "", b"{}"),
        body("a negative length", "content-length: -1\r\n", b"{}"),
        body("a length that is no number", "content-length: ten\r\n", b"{}"),
        body("a length of the world", "content-length: 18446744073709551615\r\n", b"{}"),
        body("a length above the bound", "content-length: 999999999\r\n", b"{}"),
        body("broken chunks", "transfer-encoding: chunked\r\n", b"zz\r\n{}\r\n0\r\n\r\n"),
        body("an endless chunk size", "transfer-encoding: chunked\r\n", &[b'f'; 100]),
        body("chunks and a length", "transfer-encoding: chunked\r\ncontent-length: 2\r\n", b"2\r\n{}\r\n0\r\n\r\n"),
        body("an unknown encoding", "content-encoding: br\r\ncontent-length: 2\r\n", b"{}"),
        body(
            "an idempotency key of 100 kB",
            &format!("idempotency-key: {}\r\ncontent-length: 2\r\n", &long[..50_000]),
            b"{}",
        ),
        body("deep JSON", "content-length: 1000000\r\n", &b"[".repeat(1_000_000)),
        body(
            "a number without end",
            "content-length: 1000011\r\n",
            &[b"{\"text\": ".as_slice(), &[b'9'; 1_000_000], b"}}"].concat(),
        ),
        body(
            "the same key often",
            "content-length: 900002\r\n",
            &[b"{".as_slice(), &b"\"text\":1,".repeat(100_000), b"}"].concat(),
        ),
    ];
    for (name, text) in [("words", "{\"collection\":\"COLLECTION\",\"text\":\""), ("nothing", "")] {
        for declared in [1000, 30_000_000] {
            let text = text.replace("COLLECTION", collection);
            let mut stalled = body(
                &format!("that stalls after {name} of {declared}"),
                &format!("content-length: {declared}\r\n"),
                text.as_bytes(),
            );
            stalled.is_stalled = true;
            all.push(stalled);
        }
    }
    let mut form = Hostile::raw(
        "a form that stalls",
        "POST /api/v1/documents HTTP/1.1\r\nhost: susui\r\ncontent-type: multipart/form-data; boundary=edge\r\ncontent-length: 5000\r\n\r\n\
         --edge\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\nwords",
    );
    form.is_stalled = true;
    all.push(form);
    all
}
