//! `susui` as its users run it, against a small coordinator that follows the documented API.

mod fake;

use std::path::Path;
use std::process::{Command, Output};

use fake::{Model, Server};
use serde_json::{Value, json};

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}{}", stdout(output), stderr(output));
}

fn npy(path: &Path, rows: &[[f32; 2]]) {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, 2), }}\n", rows.len());
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(rows.iter().flatten().flat_map(|x| x.to_le_bytes()));
    std::fs::write(path, bytes).expect("writes");
}

#[test]
fn documents_are_ingested_and_what_is_refused_is_listed() {
    let server = Server::start();
    let dir = tempfile::tempdir().expect("a directory");
    let corpus = dir.path().join("corpus.jsonl");
    let lines = [
        "{\"_id\":\"1\",\"title\":\"T\",\"text\":\"one\"}",
        "{\"_id\":\"2\",\"text\":\"\"}",
        "{broken",
        "{\"_id\":\"4\",\"text\":\"FAILS LATER\"}",
    ];
    std::fs::write(&corpus, lines.join("\n")).expect("writes");
    std::fs::create_dir(dir.path().join("notes")).expect("creates");
    std::fs::write(dir.path().join("notes/a.md"), "# A").expect("writes");
    std::fs::write(dir.path().join("notes/b.html"), "UNPARSABLE").expect("writes");
    let (corpus, notes) = (corpus.display().to_string(), dir.path().join("notes").display().to_string());

    // No collection: refused with a hint, nothing sent.
    let refused = server.susui(&["ingest", &corpus, "-c", "docs"]);
    assert_exit(&refused, 5);
    assert!(stderr(&refused).contains("susui collection create docs"));
    assert!(server.state.lock().expect("not poisoned").documents.is_empty());

    let ingested = server.susui(&["ingest", &corpus, &notes, "-c", "docs", "--create"]);
    assert_exit(&ingested, 3);
    for line in [
        "corpus.jsonl:2: document \"2\" has no text",
        "corpus.jsonl:3: not JSON",
        "corpus.jsonl:4: the model choked",
        "b.html: no (unsupported_media",
    ] {
        assert!(stderr(&ingested).contains(line), "no {line:?} in\n{}", stderr(&ingested));
    }
    assert!(stdout(&ingested).starts_with("2 documents into docs"), "{}", stdout(&ingested));
    let state = server.state.lock().expect("not poisoned");
    assert_eq!(state.documents["1"], "one");
    assert_eq!(state.documents["notes/a.md"], "# A");
    let keys: std::collections::HashSet<_> = state.idempotency_keys.iter().collect();
    assert_eq!(keys.len(), state.idempotency_keys.len(), "each document has a key of its own");
}

#[test]
fn vectors_are_ingested_in_batches_through_a_busy_moment_and_found_again() {
    let server = Server::start();
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str| dir.path().join(name);
    let rows: Vec<[f32; 2]> = (0..25).map(|row| [row as f32, 0.5]).collect();
    npy(&file("base.npy"), &rows);
    npy(&file("queries.npy"), &[[0.0, 0.5], [24.0, 0.5]]);
    let base = file("base.npy").display().to_string();

    assert_exit(&server.susui(&["collection", "create", "wide", "--dim", "3"]), 0);
    assert_exit(&server.susui(&["ingest", "--vectors", &base, "-c", "wide"]), 2);

    assert_exit(&server.susui(&["collection", "create", "v", "--dim", "2"]), 0);
    server.state.lock().expect("not poisoned").busy_times = 2;
    let ingested = server.susui(&["--json", "ingest", "--vectors", &base, "-c", "v", "--batch", "10"]);
    assert_exit(&ingested, 0);
    let summary: Value = serde_json::from_slice(&ingested.stdout).expect("JSON");
    assert_eq!((&summary["done"], &summary["copies_acked_min"]), (&json!(25), &json!(2)));
    {
        let mut state = server.state.lock().expect("not poisoned");
        state.points.sort_by_key(|(id, _)| id.parse::<u32>().expect("a row number"));
        let found: Vec<[f32; 2]> = state.points.iter().map(|(_, vector)| [vector[0], vector[1]]).collect();
        assert_eq!(found, rows);
    }

    // The exact neighbours of row 0 are 0..10; of row 24 they are 24, 23, ..., of which one is given wrong.
    let lists: Vec<u8> = (0..10u32).chain([24, 23, 22, 21, 20, 19, 18, 17, 16, 3]).flat_map(u32::to_le_bytes).collect();
    let header = "{'descr': '<u4', 'fortran_order': False, 'shape': (2, 10), }";
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(lists);
    std::fs::write(file("neighbors.npy"), bytes).expect("writes");
    let (queries, neighbors) = (file("queries.npy").display().to_string(), file("neighbors.npy").display().to_string());
    let measure = ["--json", "eval", "-c", "v", "--vectors", &queries, "--neighbors", &neighbors];
    let measured = server.susui(&measure);
    assert_exit(&measured, 0);
    let report: Value = serde_json::from_slice(&measured.stdout).expect("JSON");
    assert_eq!((&report["recall_at_10"], &report["codes_scanned_share"]), (&json!(0.95), &json!(0.25)));
    assert_exit(&server.susui(&[&measure[..], &["--min-recall", "0.96"]].concat()), 7);
}

#[test]
fn judged_queries_are_ranked_by_their_best_chunk() {
    let server = Server::start();
    let dir = tempfile::tempdir().expect("a directory");
    {
        let mut state = server.state.lock().expect("not poisoned");
        state.documents = ["a", "b", "c"].map(|id| (id.to_owned(), String::new())).into();
    }
    let (queries, qrels) = (dir.path().join("q.jsonl"), dir.path().join("qrels.tsv"));
    std::fs::write(&queries, "{\"_id\":\"1\",\"text\":\"x\"}\n{\"_id\":\"9\",\"text\":\"unjudged\"}\n")
        .expect("writes");
    std::fs::write(&qrels, "query-id\tcorpus-id\tscore\n1\tb\t1\n1\tz\t1\n").expect("writes");
    let (queries, qrels) = (queries.display().to_string(), qrels.display().to_string());
    let measured = server.susui(&[
        "--json",
        "eval",
        "-c",
        "docs",
        "--queries",
        &queries,
        "--qrels",
        &qrels,
        "--prefer-copy",
        "replica",
    ]);
    assert_exit(&measured, 0);
    let report: Value = serde_json::from_slice(&measured.stdout).expect("JSON");
    // b is second of a, b, c; z is never found: DCG 0.63093 over an ideal of 1.63093.
    assert!((report["ndcg_at_10"].as_f64().expect("a number") - 0.386_853).abs() < 1e-6, "{report}");
    assert_eq!(
        (&report["recall_at_100"], &report["mrr_at_10"], &report["queries"]),
        (&json!(0.5), &json!(0.5), &json!(1))
    );
    let sent = &server.state.lock().expect("not poisoned").searches[0];
    assert_eq!((&sent["top_k"], &sent["include"], &sent["prefer_copy"]), (&json!(300), &json!([]), &json!("replica")));
}

#[test]
fn an_answer_is_printed_with_its_sources_whole_or_streamed() {
    let server = Server::start();
    for stream in [&[][..], &["--stream"]] {
        let asked = server.susui(&[&["ask", "really?", "-c", "docs"], stream].concat());
        assert_exit(&asked, 3);
        let text = stdout(&asked);
        assert!(text.starts_with("Yes [1].\n"), "{text}");
        assert!(text.contains("[1] Doc (d#0, bytes 0..9), score 0.900"), "{text}");
        assert!(stderr(&asked).contains("3 of 4 shards answered"));
    }
}

#[test]
fn a_question_that_took_its_time_is_not_asked_again() {
    let server = Server::start();
    for model in [Model::Hangs, Model::GivesUp] {
        {
            let mut state = server.state.lock().expect("not poisoned");
            (state.questions, state.model) = (0, model);
        }
        let asked = server.susui(&["--timeout", "300ms", "ask", "really?", "-c", "docs"]);
        assert_exit(&asked, 6);
        assert!(stderr(&asked).contains("raise --timeout"), "{}", stderr(&asked));
        assert_eq!(server.state.lock().expect("not poisoned").questions, 1);
    }
}

#[test]
fn a_stream_may_last_while_it_says_something() {
    let server = Server::start();
    let ask = |model| {
        server.state.lock().expect("not poisoned").model = model;
        server.susui(&["--timeout", "2s", "ask", "really?", "-c", "docs", "--stream"])
    };
    // Ten pauses: longer than the timeout, which no single one comes near.
    let asked = ask(Model::Talks(9));
    assert_exit(&asked, 0);
    assert!(stdout(&asked).starts_with(&"word ".repeat(9)), "{}", stdout(&asked));

    let asked = ask(Model::FallsSilent);
    assert_exit(&asked, 6);
    assert!(stdout(&asked).starts_with("word") && stderr(&asked).contains("--timeout"), "{}", stderr(&asked));
}

#[test]
fn shards_are_shown_by_an_alias_too() {
    let server = Server::start();
    assert_exit(&server.susui(&["collection", "create", "docs-2"]), 0);
    assert_exit(&server.susui(&["collection", "create", "other"]), 0);
    server.state.lock().expect("not poisoned").aliases.insert("docs".into(), "docs-2".into());
    let status = server.susui(&["status", "--collection", "docs"]);
    assert_exit(&status, 0);
    assert!(stdout(&status).contains("docs-2/0") && !stdout(&status).contains("other/0"), "{}", stdout(&status));
    let explained = server.susui(&["shard", "explain", "docs/0"]);
    assert_exit(&explained, 0);
    assert!(stdout(&explained).contains("is green"), "{}", stdout(&explained));
    assert_exit(&server.susui(&["status", "--collection", "nothing"]), 5);
    assert_exit(&server.susui(&["shard", "explain", "docs/1"]), 2);
}

#[test]
fn an_alias_is_not_deleted_in_the_place_of_its_collection() {
    let server = Server::start();
    assert_exit(&server.susui(&["collection", "create", "docs-2"]), 0);
    server.state.lock().expect("not poisoned").aliases.insert("docs".into(), "docs-2".into());
    for yes in [&[][..], &["--yes"]] {
        let refused = server.susui(&[&["collection", "delete", "docs"], yes].concat());
        assert_exit(&refused, 2);
        assert!(stderr(&refused).contains("docs is an alias of docs-2"), "{}", stderr(&refused));
    }
    assert_exit(&server.susui(&["collection", "show", "docs-2"]), 0);
}

#[test]
fn deleting_is_a_dry_run_first() {
    let server = Server::start();
    assert_exit(&server.susui(&["collection", "create", "docs"]), 0);
    let dry = server.susui(&["collection", "delete", "docs"]);
    assert_exit(&dry, 0);
    assert!(stdout(&dry).contains("nothing was done"));
    assert!(stdout(&server.susui(&["collection", "list"])).contains("docs"));
    let deleted = server.susui(&["collection", "delete", "docs", "--yes"]);
    assert_exit(&deleted, 0);
    assert!(stdout(&deleted).contains("docs is deleted"));
    assert_exit(&server.susui(&["collection", "show", "docs"]), 5);
}

#[test]
fn a_missing_coordinator_is_explained() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let url = format!("http://127.0.0.1:{port}");
    let output = Command::new(env!("CARGO_BIN_EXE_susui")).args(["--url", &url, "status"]).output().expect("runs");
    assert_exit(&output, 4);
    assert!(
        stderr(&output).contains("connection refused") && stderr(&output).contains("susui dev up"),
        "{}",
        stderr(&output)
    );
    let output =
        Command::new(env!("CARGO_BIN_EXE_susui")).args(["--url", &url, "--json", "status"]).output().expect("runs");
    let error: Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!((&error["error"]["type"], &error["error"]["exit_code"]), (&json!("unreachable"), &json!(4)));
}
