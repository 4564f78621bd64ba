//! Uploads: JSON and forms, jobs to the end, reading, listing, deleting, idempotency.

use std::io::{Cursor, Write};

use reqwest::StatusCode;
use reqwest::multipart::{Form, Part};
use serde_json::json;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::support::{Coordinator, Setup, events, ids};

const WINGS: &str = "The wing lifts the aircraft. Its camber turns the flow downward.";

#[tokio::test]
async fn a_document_becomes_searchable_and_goes_again() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_texts("t").await;
    let body = json!({"id": "d1", "title": "Wings", "text": WINGS, "collection": "t", "metadata": {"n": 1}});
    let accepted = c.post("/api/v1/documents", body).await;
    assert_eq!(accepted.status, StatusCode::ACCEPTED);
    assert_eq!((&accepted.body["id"], &accepted.body["status"]), (&json!("d1"), &json!("processing")));
    let job = c.follow_job(accepted.body["job_id"].as_str().expect("id")).await;
    assert_eq!((&job["status"], &job["progress"]), (&json!("done"), &json!(1.0)), "{job}");

    let search =
        json!({"collection": "t", "query": "wing camber", "consistency": "session", "session": job["session"]});
    let found = c.post("/api/v1/search", search.clone()).await.ok();
    assert_eq!(ids(&found), ["d1"]);
    let hit = &found["hits"][0];
    assert_eq!(hit["title"], "Wings");
    let span =
        (hit["span"]["start"].as_u64().expect("start") as usize, hit["span"]["end"].as_u64().expect("end") as usize);
    let document = c.get("/api/v1/documents/d1?collection=t&include_text=true").await.ok();
    let text = document["text"].as_str().expect("kept text");
    assert_eq!(Some(&text[span.0..span.1]), hit["text"].as_str(), "the span is byte-equal to its source");
    assert_eq!((&document["status"], &document["searchable"]), (&json!("ready"), &json!(true)));
    assert_eq!(document["metadata"], json!({"n": 1}));

    let gone = c.delete("/api/v1/documents/d1?collection=t").await.ok();
    assert_eq!(gone["copies_acked_min"], 2);
    assert_eq!(ids(&c.post("/api/v1/search", search).await.ok()).len(), 0);
    assert_eq!(c.get("/api/v1/documents/d1?collection=t").await.status, StatusCode::NOT_FOUND);
    assert_eq!(c.delete("/api/v1/documents/d1?collection=t").await.status, StatusCode::OK);
    c.stop().await;
}

#[tokio::test]
async fn a_form_brings_a_file() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_texts("t").await;
    let send = async |form: Form| {
        let request = c.http.post(format!("{}/api/v1/documents", c.base)).multipart(form);
        Coordinator::read(request.send().await.expect("answers")).await
    };
    let markdown = "# Lift\n\nThe wing lifts.\n\n## Stall\n\nToo steep an angle stalls it.\n";
    let file = || Part::bytes(markdown.as_bytes()).file_name("wing.md").mime_str("text/markdown").expect("type");
    let form = Form::new().text("collection", "t").text("metadata", "{\"n\":2}").text("id", "w").part("file", file());
    let accepted = send(form).await;
    assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.body);
    let job = c.follow_job(accepted.body["job_id"].as_str().expect("id")).await;
    assert_eq!(job["status"], "done", "{job}");
    assert_eq!(c.get("/api/v1/documents/w?collection=t").await.ok()["title"], "Lift");

    let unknown = send(Form::new().text("colection", "t").part("file", file())).await;
    assert_eq!(unknown.status, StatusCode::BAD_REQUEST);
    assert!(unknown.body["error"]["message"].as_str().expect("text").contains("colection"));
    assert_eq!(send(Form::new().text("collection", "t")).await.status, StatusCode::BAD_REQUEST);
    let two = send(Form::new().text("collection", "t").part("file", file()).part("file", file())).await;
    assert_eq!(two.status, StatusCode::BAD_REQUEST, "{}", two.body);
    assert!(two.body["error"]["message"].as_str().expect("text").contains("file: more than one"), "{}", two.body);

    let binary = Part::bytes(vec![0xff, 0xfe, 0x00, 0x01, 0x80]).file_name("x.bin");
    let accepted = send(Form::new().text("collection", "t").part("file", binary)).await;
    if accepted.status == StatusCode::ACCEPTED {
        let job = c.follow_job(accepted.body["job_id"].as_str().expect("id")).await;
        assert_eq!((&job["status"], &job["error"]["type"]), (&json!("failed"), &json!("unsupported_media")), "{job}");
    } else {
        assert!(accepted.status.is_client_error());
    }
    c.stop().await;
}

#[tokio::test]
async fn a_newer_upload_replaces_an_older_one() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_texts("t").await;
    c.upload("t", "d", "", "old words about birds").await;
    let job = c.upload("t", "d", "", "new words about engines").await;
    assert_eq!(job["status"], "done");
    let found = c.post("/api/v1/search", json!({"collection": "t", "query": "words", "top_k": 10})).await.ok();
    assert_eq!(ids(&found), ["d"]);
    assert_eq!(found["hits"][0]["text"], "new words about engines");
    c.stop().await;
}

#[tokio::test]
async fn an_idempotency_key_makes_one_job() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_texts("t").await;
    let send = async |key: &str, text: &str| {
        let body = json!({"text": text, "collection": "t"});
        let request = c.http.post(format!("{}/api/v1/documents", c.base)).header("idempotency-key", key).json(&body);
        Coordinator::read(request.send().await.expect("answers")).await
    };
    let first = send("k1", WINGS).await.ok();
    let again = send("k1", WINGS).await.ok();
    assert_eq!((&first["id"], &first["job_id"]), (&again["id"], &again["job_id"]));
    let other = send("k1", "something else").await;
    assert_eq!((other.status, &other.body["error"]["type"]), (StatusCode::CONFLICT, &json!("conflict")));
    assert_ne!(send("k2", WINGS).await.ok()["id"], first["id"]);
    c.stop().await;
}

#[tokio::test]
async fn the_same_request_without_an_id_is_the_same_document() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_texts("t").await;
    c.create_texts("u").await;
    let send = async |body: serde_json::Value| {
        let accepted = c.post("/api/v1/documents", body).await.ok();
        let job = c.follow_job(accepted["job_id"].as_str().expect("id")).await;
        assert_eq!(job["status"], "done", "{job}");
        accepted["id"].as_str().expect("id").to_owned()
    };
    let body = json!({"text": WINGS, "title": "Wings", "collection": "t", "metadata": {"n": 1, "m": 2}});
    let first = send(body.clone()).await;
    let applied = c.twin.applied_total();
    assert_eq!(send(body.clone()).await, first);
    assert_eq!(c.twin.applied_total(), applied, "it was not indexed a second time");
    // Whatever else is said makes another document: none takes another one's place.
    let mut ids = std::collections::BTreeSet::from([first.clone()]);
    for (field, value) in [
        ("text", json!("Something else.")),
        ("title", json!("Other")),
        ("metadata", json!({"n": 2, "m": 2})),
        ("collection", json!("u")),
    ] {
        let mut other = body.clone();
        other[field] = value;
        ids.insert(send(other).await);
    }
    assert_eq!(ids.len(), 5, "{ids:?}");
    // Deleted, it comes again under its id.
    c.delete(&format!("/api/v1/documents/{first}?collection=t")).await.ok();
    assert_eq!(send(body).await, first);
    assert_eq!(c.get(&format!("/api/v1/documents/{first}?collection=t")).await.ok()["searchable"], true);
    c.stop().await;
}

#[tokio::test]
async fn uploads_are_listed_newest_first_or_by_title() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_texts("t").await;
    for (id, title) in [("x", "Harbour dues"), ("c", "Crane"), ("a", "Harbour"), ("b", "Harbour")] {
        assert_eq!(c.upload("t", id, title, &format!("text of {id}")).await["status"], "done");
    }
    let point = json!({"points": [{"id": "point", "vector": vec![1.0; super::support::DIM], "title": "Harbour"}]});
    c.put("/api/v1/collections/t/points", point).await.ok();
    for (query, expected) in [
        ("sort=newest", vec!["b", "a", "c", "x"]),
        ("title=Harbour", vec!["a", "b", "x"]),
        ("title=Harbour%20&sort=title", vec!["x"]),
        ("sort=title", vec!["c", "a", "b", "x"]),
        ("title=harbour", vec![]),
        ("sort=id", vec!["a", "b", "c", "point", "x"]),
    ] {
        for limit in [1, 2, 10] {
            let (mut listed, mut cursor) = (Vec::new(), String::new());
            loop {
                let path = format!("/api/v1/documents?collection=t&limit={limit}&{query}&cursor={cursor}");
                let page = c.get(&path).await.ok();
                for document in page["documents"].as_array().expect("documents") {
                    assert_eq!((&document["status"], &document["searchable"]), (&json!("ready"), &json!(true)));
                    listed.push(document["id"].as_str().expect("id").to_owned());
                }
                match page["next_cursor"].as_str() {
                    Some(next) => cursor = next.to_owned(),
                    None => break,
                }
            }
            assert_eq!(listed, expected, "{query}, pages of {limit}");
        }
    }
    for (query, field) in [
        ("sort=size", "sort"),
        ("sort=newest&title=x", "sort"),
        ("sort=newest&cursor=x", "cursor"),
        ("sort=title&cursor=[1,\"a\"]", "cursor"),
    ] {
        let refused = c.get(&format!("/api/v1/documents?collection=t&{query}")).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{query}: {}", refused.body);
        assert!(refused.body["error"]["message"].as_str().is_some_and(|text| text.contains(field)), "{}", refused.body);
    }
    c.stop().await;
}

#[tokio::test]
async fn all_documents_are_listed_once_page_by_page() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_texts("t").await;
    for number in 0..5 {
        assert_eq!(c.upload("t", &format!("up{number}"), "", &format!("text {number}")).await["status"], "done");
    }
    let mut vector = vec![0.0; super::support::DIM];
    vector[0] = 1.0;
    let points: Vec<_> = (0..8).map(|number| json!({"id": format!("point{number}"), "vector": vector})).collect();
    c.put("/api/v1/collections/t/points", json!({ "points": points })).await.ok();
    for limit in [1, 2, 3, 13, 100] {
        let mut listed = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = c.get(&format!("/api/v1/documents?collection=t&limit={limit}&cursor={cursor}")).await.ok();
            for document in page["documents"].as_array().expect("documents") {
                assert_eq!(
                    (&document["status"], &document["searchable"]),
                    (&json!("ready"), &json!(true)),
                    "{document}"
                );
                listed.push(document["id"].as_str().expect("id").to_owned());
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = next.to_owned(),
                None => break,
            }
        }
        let mut expected: Vec<String> = c.twin.document_ids().into_iter().collect();
        expected.sort();
        assert_eq!(listed, expected, "limit {limit}");
    }
    c.stop().await;
}

#[tokio::test]
async fn events_have_rising_ids_and_end_with_the_end() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_texts("t").await;
    let accepted = c.post("/api/v1/documents", json!({"text": WINGS, "collection": "t"})).await.ok();
    let (_, text) = c.text(&format!("/api/v1/jobs/{}/events", accepted["job_id"].as_str().expect("id"))).await;
    let events = events(&text);
    for (position, (id, name, _)) in events.iter().enumerate() {
        assert_eq!((*id, name.as_str()), (position as u64, "job"));
    }
    let progress: Vec<f64> = events.iter().map(|(_, _, job)| job["progress"].as_f64().expect("number")).collect();
    assert!(progress.is_sorted(), "{progress:?}");
    assert_eq!(events.last().expect("some").2["status"], "done");
    c.stop().await;
}

#[tokio::test]
async fn hits_and_citations_of_a_pdf_name_the_page() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_texts("t").await;
    let pdf = std::fs::read(format!("{}/tests/fixtures/harbour.pdf", env!("CARGO_MANIFEST_DIR"))).expect("fixture");
    assert_eq!(c.upload_file("t", "h", "harbour.pdf", &pdf).await["status"], "done");
    let document = c.get("/api/v1/documents/h?collection=t&include_text=true").await.ok();
    assert_eq!((&document["title"], &document["metadata"]), (&json!("Harbour Handbook"), &json!({})));
    let search = json!({"collection": "t", "query": "lighthouse shows three white flashes every twenty seconds"});
    let found = c.post("/api/v1/search", search.clone()).await.ok();
    let hit = &found["hits"][0];
    assert_eq!(hit["document_id"], "h");
    assert_eq!(hit["metadata"]["page"], 3, "{hit}");
    let answer = c.post("/api/v1/query", search).await.ok();
    let citation = &answer["citations"][0];
    assert_eq!(citation["page"], 3, "{answer}");
    c.stop().await;
}

/// A DOCX of paragraphs in those styles.
fn word_document(paragraphs: &[(&str, &str)]) -> Vec<u8> {
    let styles = ["1", "2"]
        .map(|level| format!("<w:style w:styleId=\"Heading{level}\"><w:name w:val=\"heading {level}\"/></w:style>"));
    let paragraph = |(style, text): &(&str, &str)| {
        format!("<w:p><w:pPr><w:pStyle w:val=\"{style}\"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>")
    };
    let body: String = paragraphs.iter().map(paragraph).collect();
    let mut package = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, text) in [
        ("word/styles.xml", format!("<w:styles>{}</w:styles>", styles.concat())),
        ("word/document.xml", format!("<w:document><w:body>{body}</w:body></w:document>")),
    ] {
        package.start_file(name, SimpleFileOptions::default()).expect("starts");
        package.write_all(text.as_bytes()).expect("writes");
    }
    package.finish().expect("finishes").into_inner()
}

#[tokio::test]
async fn hits_and_citations_name_the_headings_and_a_filter_finds_them() {
    let c = Coordinator::start(Setup::default()).await;
    let spec = json!({"embedder": "fake-hash-16", "shards": 2, "copies": 2, "fields": {"headings": "keyword"}});
    c.put("/api/v1/collections/t", spec).await.ok();
    let filler = "The keeper writes the weather into the book every morning and every evening. ".repeat(12);
    let markdown =
        format!("# Harbour\n\n{filler}\n\n## Fees\n\n### Yachts\n\nA yacht pays nine crowns a night. {filler}\n");
    let html =
        format!("<h1>Pilots</h1><p>{filler}</p><h2>Duties</h2><p>The pilot boards at the outer buoy. {filler}</p>");
    for (id, name, text) in [("m", "harbour.md", markdown), ("h", "pilots.html", html)] {
        assert_eq!(c.upload_file("t", id, name, text.as_bytes()).await["status"], "done", "{name}");
    }
    let letter = word_document(&[
        ("Heading1", "Cranes"),
        ("Normal", &filler),
        ("Heading2", "Wind"),
        ("Normal", &format!("Stop at the outer buoy above fifteen metres per second. {filler}")),
    ]);
    assert_eq!(c.upload_file("t", "w", "cranes.docx", &letter).await["status"], "done");
    for (id, name) in [("p", "pilots.pptx"), ("e", "sea.epub")] {
        let file = std::fs::read(format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).expect("fixture");
        assert_eq!(c.upload_file("t", id, name, &file).await["status"], "done", "{name}");
    }
    let cases = [
        ("m", "Fees", json!(["Harbour", "Fees", "Yachts"])),
        ("h", "Duties", json!(["Pilots", "Duties"])),
        ("w", "Wind", json!(["Cranes", "Wind"])),
        ("p", "Arrival", json!(["Arrival"])),
        ("e", "The Calm", json!(["The Calm"])),
    ];
    for (id, heading, path) in cases {
        let filters = json!({"must": [{"field": "headings", "eq": heading}, {"field": "document_id", "eq": id}]});
        let search = json!({"collection": "t", "query": "a night at the outer buoy in the wind of the morning", "filters": filters});
        let answer = c.post("/api/v1/query", search).await.ok();
        let hits = answer["hits"].as_array().expect("hits");
        assert!(!hits.is_empty(), "{id}");
        assert!(hits.iter().all(|hit| hit["metadata"]["headings"] == path), "{answer}");
        assert_eq!(answer["citations"][0]["headings"], path, "{answer}");
    }
    let document = c.get("/api/v1/documents/m?collection=t").await.ok();
    assert_eq!(document["metadata"], json!({}), "what the caller gave");
    c.stop().await;
}
