//! Keys, scopes, limits: who may do what, and that nobody sees another tenant's text.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use coordinator::cluster::twin::Fault;
use coordinator::tenants::{TenantOptions, key_hash};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::support::{Answer, Coordinator, Setup, ids};

pub(crate) const OPERATOR: &str = "the operator's key, thirty-two bytes and more";
/// Stands in everything that is the tenant acme's, and in no request of the other's.
const SECRET: &str = "xylophone";

pub(crate) fn with_keys() -> Setup {
    let tenants = TenantOptions { keys_required: true, operator_key_hash: Some(key_hash(OPERATOR)) };
    Setup { tenants, ..Setup::default() }
}

/// Makes the tenant and a key of it.
pub(crate) async fn make_key(c: &Coordinator, tenant: &str, scope: &str) -> (String, String) {
    let path = format!("/api/v1/tenants/{tenant}");
    if c.call_as(OPERATOR, Method::GET, &path, None).await.status == StatusCode::NOT_FOUND {
        c.call_as(OPERATOR, Method::PUT, &path, Some(json!({}))).await.ok();
    }
    let body = json!({"tenant": tenant, "name": "test", "scope": scope});
    let made = c.call_as(OPERATOR, Method::POST, "/api/v1/keys", Some(body)).await.ok();
    let text = |field: &str| made[field].as_str().expect("text").to_owned();
    (text("id"), text("key"))
}

pub(crate) async fn upload_as(c: &Coordinator, key: &str, body: Value) -> Answer {
    let accepted = c.call_as(key, Method::POST, "/api/v1/documents", Some(body)).await;
    if let Some(job) = accepted.body["job_id"].as_str() {
        let path = format!("{}/api/v1/jobs/{job}/events", c.base);
        let events = c.http.get(path).bearer_auth(key).send().await.expect("answers").text().await.expect("text");
        assert!(events.contains("\"status\":\"done\""), "{events}");
    }
    accepted
}

fn acme_document() -> Value {
    json!({"id": "plans", "collection": "docs", "title": format!("{SECRET} title"),
        "text": format!("The {SECRET} is planned for spring."), "metadata": {"owner": SECRET}})
}

#[tokio::test]
async fn keys_open_what_their_scope_says() {
    let c = Coordinator::start(with_keys()).await;
    let spec = json!({"embedder": "fake-hash-16", "shards": 1, "copies": 1});
    c.call_as(OPERATOR, Method::PUT, "/api/v1/collections/docs", Some(spec.clone())).await.ok();
    let (_, reader) = make_key(&c, "acme", "read").await;
    let (writer_id, writer) = make_key(&c, "acme", "write").await;
    let search = json!({"collection": "docs", "query": "x"});

    for key in ["", "nonsense", "susui_00"] {
        let refused = c.call_as(key, Method::POST, "/api/v1/search", Some(search.clone())).await;
        assert_eq!((refused.status.as_u16(), refused.body["error"]["type"].as_str()), (401, Some("unauthenticated")));
        assert_eq!(refused.headers["www-authenticate"], "Bearer");
        assert!(refused.body["error"]["hint"].as_str().is_some_and(|hint| hint.contains("key")), "{}", refused.body);
    }
    for (key, method, path, body, status) in [
        (&reader, Method::POST, "/api/v1/search", search.clone(), 200),
        (&reader, Method::POST, "/api/v1/documents", json!({"collection": "docs", "text": "x"}), 403),
        (&writer, Method::POST, "/api/v1/documents", json!({"collection": "docs", "text": "x"}), 202),
        (&writer, Method::PUT, "/api/v1/collections/more", spec.clone(), 403),
        (&writer, Method::POST, "/api/v1/keys", json!({"name": "x", "scope": "read"}), 403),
        (&writer, Method::PUT, "/api/v1/tenants/acme", json!({}), 403),
    ] {
        let answer = c.call_as(key, method.clone(), path, Some(body)).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {}", answer.body);
        if status == 403 {
            assert!(answer.body["error"]["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{}", answer.body);
        }
    }
    // An administrator is the operator, not a tenant.
    let body = json!({"tenant": "acme", "name": "x", "scope": "admin"});
    let refused = c.call_as(OPERATOR, Method::POST, "/api/v1/keys", Some(body)).await;
    assert_eq!((refused.status.as_u16(), &refused.body["error"]["type"]), (400, &json!("invalid_argument")));

    // Revoked here, refused from the next request on; the same for a disabled tenant.
    c.call_as(OPERATOR, Method::DELETE, &format!("/api/v1/keys/{writer_id}"), None).await.ok();
    assert_eq!(c.call_as(&writer, Method::POST, "/api/v1/search", Some(search.clone())).await.status.as_u16(), 401);
    c.call_as(OPERATOR, Method::PUT, "/api/v1/tenants/acme", Some(json!({"disabled": true}))).await.ok();
    assert_eq!(c.call_as(&reader, Method::POST, "/api/v1/search", Some(search)).await.status.as_u16(), 403);

    let listed = c.call_as(OPERATOR, Method::GET, "/api/v1/keys?tenant=acme", None).await;
    let text = listed.body.to_string();
    assert!(!text.contains(&reader) && !text.contains(&writer), "no secret is ever shown again");
    assert_eq!(listed.ok()["keys"].as_array().map(Vec::len), Some(2));
    c.stop().await;
}

/// Every route of the description, called with another tenant's key about what is acme's.
#[tokio::test]
async fn no_door_shows_another_tenant_s_text() {
    let c = Coordinator::start(with_keys()).await;
    let spec = json!({"embedder": "fake-hash-16", "shards": 2, "copies": 1, "fields": {"owner": "keyword"}});
    c.call_as(OPERATOR, Method::PUT, "/api/v1/collections/docs", Some(spec)).await.ok();
    c.call_as(OPERATOR, Method::PUT, "/api/v1/aliases/current", Some(json!({"collection": "docs"}))).await.ok();
    let (key_id, acme) = make_key(&c, "acme", "write").await;
    let (_, other) = make_key(&c, "other", "write").await;
    let accepted = upload_as(&c, &acme, acme_document()).await.ok();
    let job_id = accepted["job_id"].as_str().expect("job").to_owned();
    // The cache holds acme's results when the other asks the same.
    let question = json!({"collection": "docs", "query": "planned for spring", "top_k": 10});
    let own = c.call_as(&acme, Method::POST, "/api/v1/search", Some(question.clone())).await.ok();
    assert!(own.to_string().contains(SECRET), "{own}");

    let description = c.get("/openapi.json").await.ok();
    let mut called = BTreeSet::new();
    for (pattern, operations) in description["paths"].as_object().expect("paths") {
        for method in operations.as_object().expect("operations").keys() {
            let path = pattern
                .replace("{collection}", "docs")
                .replace("{alias}", "current")
                .replace("{tenant}", "acme")
                .replace("{action}", "0:digest")
                .replace(
                    "{id}",
                    match pattern.as_str() {
                        path if path.contains("/jobs/") => &job_id,
                        path if path.contains("/keys/") => &key_id,
                        _ => "plans",
                    },
                );
            let path = match (pattern.as_str(), method.as_str()) {
                ("/api/v1/documents/{id}", "get") => format!("{path}?collection=docs&include_text=true"),
                ("/api/v1/documents/{id}", _) | ("/api/v1/documents", "get") => format!("{path}?collection=docs"),
                ("/api/v1/keys", "get") => format!("{path}?tenant=acme"),
                _ => path,
            };
            for body in bodies(pattern, method, &question) {
                let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("method");
                let mut request = c.http.request(method.clone(), format!("{}{path}", c.base)).bearer_auth(&other);
                if !body.is_null() {
                    request = request.json(&body);
                }
                let response = request.send().await.expect("answers");
                let (status, text) = (response.status(), response.text().await.expect("text"));
                assert!(!text.contains(SECRET), "{method} {path} {body} -> {status} {text}");
                assert!(!status.is_server_error(), "{method} {path} {body} -> {status} {text}");
                if required_admin(pattern, method.as_str()) {
                    assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path} {text}");
                }
                called.insert(format!("{method} {pattern}"));
            }
        }
    }
    assert!(called.len() >= 30, "{called:?}");
    // The two front doors are in no description of ours.
    let messages = json!([{"role": "user", "content": "what is planned for spring"}]);
    for stream in [false, true] {
        for (path, body) in [
            ("/v1/chat/completions", json!({"model": "rag/docs", "messages": messages, "stream": stream})),
            ("/v1/completions", json!({"model": "rag/docs", "prompt": "what is planned", "stream": stream})),
            ("/api/chat", json!({"model": "rag/docs", "messages": messages, "stream": stream})),
            ("/api/generate", json!({"model": "rag/current", "prompt": "what is planned", "stream": stream})),
        ] {
            let ask = async |key: &str| {
                let request = c.http.post(format!("{}{path}", c.base)).json(&body);
                let request = if key.is_empty() { request } else { request.bearer_auth(key) };
                let response = request.send().await.expect("answers");
                (response.status().as_u16(), response.text().await.expect("text"))
            };
            let (own, foreign, nobody) = (ask(&acme).await, ask(&other).await, ask("").await);
            assert!(own.0 == 200 && own.1.contains(SECRET), "{path}: {own:?}");
            assert!(foreign.0 == 200 && !foreign.1.contains(SECRET), "{path}: {foreign:?}");
            assert_eq!(nobody.0, 401, "{path}: {nobody:?}");
        }
    }

    // Nothing of acme's was changed by all that, its namesake of the other's included.
    let document =
        c.call_as(&acme, Method::GET, "/api/v1/documents/plans?collection=docs&include_text=true", None).await;
    assert!(document.ok()["text"].as_str().is_some_and(|text| text.contains(SECRET)));
    let again = c.call_as(&acme, Method::POST, "/api/v1/search", Some(question.clone())).await.ok();
    assert_eq!(ids(&again), ["plans"]);
    let listed = c.call_as(&acme, Method::GET, "/api/v1/documents?collection=current", None).await.ok();
    assert_eq!(listed["documents"].as_array().map(Vec::len), Some(1));
    // The administrative calls are written down, the refused ones of a known key as well.
    let audit = c.call_as(OPERATOR, Method::GET, "/api/v1/audit?limit=1000", None).await.ok();
    let calls = audit["calls"].as_array().expect("calls");
    let has = |action: &str, status: u64| calls.iter().any(|call| call["action"] == action && call["status"] == status);
    assert!(has("PUT /api/v1/collections/{collection}", 201) && has("POST /api/v1/keys", 201), "{audit}");
    assert!(has("DELETE /api/v1/collections/{collection}", 403), "{audit}");
    c.stop().await;
}

/// The client of an administrative call leaves: the call is made all the same, and written down.
#[tokio::test]
async fn a_call_whose_client_left_is_in_the_audit_log() {
    let c = Coordinator::start(with_keys()).await;
    (1..=3).for_each(|node| c.twin.set_fault(node, Some(Fault::Slow(Duration::from_millis(500)))));
    let spec = json!({"dim": 3, "shards": 1, "copies": 1});
    let request = c.http.put(format!("{}/api/v1/collections/left", c.base)).bearer_auth(OPERATOR).json(&spec);
    let request = tokio::spawn(request.send());
    while c.twin.calls("create_collection") == 0 {
        tokio::task::yield_now().await;
    }
    request.abort();
    while !c.text("/metrics").await.1.contains("\nhttp_requests_in_flight 1\n") {
        tokio::task::yield_now().await;
    }
    (1..=3).for_each(|node| c.twin.set_fault(node, None));
    let end = Instant::now() + Duration::from_secs(60);
    let target = "/api/v1/collections/left";
    loop {
        let audit = c.call_as(OPERATOR, Method::GET, "/api/v1/audit?limit=1000", None).await.ok();
        let calls = audit["calls"].as_array().cloned().unwrap_or_default();
        if let Some(call) = calls.iter().find(|call| call["target"] == target) {
            assert_eq!((&call["status"], call["request_id"] == ""), (&json!(201), false), "{call}");
            break;
        }
        assert!(Instant::now() < end, "not written down within a minute: {audit}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    c.call_as(OPERATOR, Method::GET, target, None).await.ok();
    c.stop().await;
}

/// Whether a tenant's key must be refused.
fn required_admin(pattern: &str, method: &str) -> bool {
    let of_tenants = ["/search", "/search:batch", "/query", "/documents", "/jobs", "/points"];
    let reads = method == "GET" && ["/collections", "/aliases", "/usage"].iter().any(|part| pattern.contains(part));
    pattern.starts_with("/api/v1") && !reads && !of_tenants.iter().any(|part| pattern.contains(part))
        || pattern.ends_with("/usage")
}

/// Bodies that reach as far into each route as a tenant can.
fn bodies(pattern: &str, method: &str, question: &Value) -> Vec<Value> {
    let with = |field: &str, value: Value| {
        let mut body = question.clone();
        body[field] = value;
        body
    };
    let owned = json!({"must": [{"field": "document_id", "eq": "plans"}]});
    match (method, pattern) {
        ("get" | "delete", _) => vec![Value::Null],
        (_, "/api/v1/search") => vec![
            question.clone(),
            with("filters", owned.clone()),
            with("exact", json!(true)),
            with("consistency", json!("strong")),
            with("collection", json!("current")),
            with("explain", json!(true)),
        ],
        (_, "/api/v1/search:batch") => vec![json!({"searches": [question, with("filters", owned)]})],
        (_, "/api/v1/query") => vec![question.clone(), with("stream", json!(true))],
        (_, "/api/v1/documents") => vec![json!({"id": "plans", "collection": "docs", "text": "mine"})],
        (_, path) if path.ends_with("/points") => {
            vec![json!({"points": [{"id": "plans", "vector": vec![1.0; super::support::DIM], "text": "mine"}]})]
        }
        (_, path) if path.ends_with("points:delete") => vec![json!({"ids": ["plans"]}), json!({"filters": owned})],
        _ => vec![json!({})],
    }
}

#[tokio::test]
async fn a_tenant_s_limits_hold_for_it_alone() {
    let c = Coordinator::start(with_keys()).await;
    let spec = json!({"embedder": "fake-hash-16", "shards": 1, "copies": 1});
    c.call_as(OPERATOR, Method::PUT, "/api/v1/collections/docs", Some(spec)).await.ok();
    let (_, acme) = make_key(&c, "acme", "write").await;
    let (_, other) = make_key(&c, "other", "write").await;
    let set = async |limits: Value| c.call_as(OPERATOR, Method::PUT, "/api/v1/tenants/acme", Some(limits)).await.ok();

    set(json!({"stored_bytes_max": 10})).await;
    let upload = |text: &str| json!({"id": "d", "collection": "docs", "text": text});
    upload_as(&c, &acme, upload("0123456789")).await.ok();
    let refused = upload_as(&c, &acme, upload("0123456789+")).await;
    assert_eq!((refused.status.as_u16(), &refused.body["error"]["type"]), (403, &json!("permission_denied")));
    assert!(
        refused.body["error"]["message"].as_str().is_some_and(|text| text.contains("10 bytes")),
        "{}",
        refused.body
    );
    upload_as(&c, &acme, upload("a smaller")).await.ok();
    upload_as(&c, &other, upload("0123456789+")).await.ok();
    let usage = c.call_as(&acme, Method::GET, "/api/v1/tenants/acme/usage", None).await.ok();
    assert_eq!(usage["stored_bytes"], 9);
    c.call_as(&acme, Method::DELETE, "/api/v1/documents/d?collection=docs", None).await.ok();
    assert_eq!(c.call_as(&acme, Method::GET, "/api/v1/tenants/acme/usage", None).await.ok()["stored_bytes"], 0);

    // One request a second: of two in a row, sent within it, the second is refused.
    set(json!({"requests_per_second": 1})).await;
    let mut refused = None;
    for _ in 0..50 {
        let answer = c.call_as(&acme, Method::GET, "/api/v1/collections", None).await;
        if answer.status != StatusCode::OK {
            refused = Some(answer);
            break;
        }
        c.call_as(&other, Method::GET, "/api/v1/collections", None).await.ok();
    }
    let refused = refused.expect("fifty requests within fifty seconds");
    assert_eq!((refused.status.as_u16(), &refused.body["error"]["type"]), (429, &json!("rate_limited")));
    assert_eq!(refused.headers["retry-after"], "1");
    assert!(refused.body["error"]["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{}", refused.body);

    c.stop().await;
}

/// The events of a job that nobody works on stay open: a stream that lasts as long as its reader likes.
#[tokio::test]
async fn streams_have_places() {
    let c = Coordinator::start(Setup { workers: 0, ..with_keys() }).await;
    let spec = json!({"embedder": "fake-hash-16", "shards": 1, "copies": 1});
    c.call_as(OPERATOR, Method::PUT, "/api/v1/collections/docs", Some(spec)).await.ok();
    let (_, acme) = make_key(&c, "acme", "write").await;
    let (_, other) = make_key(&c, "other", "write").await;
    c.call_as(OPERATOR, Method::PUT, "/api/v1/tenants/acme", Some(json!({"streams_max": 1}))).await.ok();
    let body = json!({"id": "d", "collection": "docs", "text": "x"});
    let job = async |key: &str| {
        let accepted = c.call_as(key, Method::POST, "/api/v1/documents", Some(body.clone())).await.ok();
        format!("{}/api/v1/jobs/{}/events", c.base, accepted["job_id"].as_str().expect("job"))
    };
    let (acme_job, other_job) = (job(&acme).await, job(&other).await);
    let open = async |key: &str, url: &str| c.http.get(url).bearer_auth(key).send().await.expect("answers");

    let first = open(&acme, &acme_job).await;
    assert_eq!(first.status(), StatusCode::OK);
    let refused = Coordinator::read(open(&acme, &acme_job).await).await;
    assert_eq!((refused.status.as_u16(), &refused.body["error"]["type"]), (429, &json!("rate_limited")));
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(open(&other, &other_job).await.status(), StatusCode::OK, "another tenant has places of its own");
    assert_eq!(open(&other, &acme_job).await.status(), StatusCode::NOT_FOUND, "a job is its tenant's");
    drop(first);
    // The server hears of it when it next writes or reads the connection.
    while open(&acme, &acme_job).await.status() != StatusCode::OK {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    c.stop().await;
}
