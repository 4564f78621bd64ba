//! Collections, cluster, health, metrics, description.

use cluster_config::ids::NodeId;
use reqwest::StatusCode;
use serde_json::json;

use super::support::{Coordinator, Setup};

#[tokio::test]
async fn a_collection_is_created_read_and_deleted() {
    let c = Coordinator::start(Setup::default()).await;
    let spec =
        json!({"dim": 3, "shards": 2, "copies": 2, "metric": "l2", "pca_dim": null, "fields": {"year": "integer"}});
    let created = c.put("/api/v1/collections/a", spec.clone()).await;
    assert_eq!(created.status, StatusCode::CREATED, "{}", created.body);
    assert_eq!(created.body["shards"], 2);
    assert_eq!(created.body["metric"], "l2");
    assert_eq!(created.body["min_in_sync"], 1);
    assert_eq!(c.put("/api/v1/collections/a", spec).await.status, StatusCode::OK);
    let other = c.put("/api/v1/collections/a", json!({"dim": 4})).await;
    assert_eq!((other.status, &other.body["error"]["type"]), (StatusCode::CONFLICT, &json!("already_exists")));
    c.put("/api/v1/collections/b", json!({"embedder": "fake-hash-16"})).await.ok();
    assert_eq!(c.get("/api/v1/collections/b").await.ok()["dim"], 16);
    let names: Vec<_> = c.get("/api/v1/collections").await.ok()["collections"]
        .as_array()
        .expect("list")
        .iter()
        .map(|collection| collection["name"].clone())
        .collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(c.delete("/api/v1/collections/a").await.ok()["existed"], true);
    assert_eq!(c.delete("/api/v1/collections/a").await.ok()["existed"], false);
    assert_eq!(c.get("/api/v1/collections/a").await.status, StatusCode::NOT_FOUND);
    c.stop().await;
}

/// Nobody is asked twice for copies that have no place; a node that comes meanwhile is waited for.
#[tokio::test]
async fn more_copies_than_nodes_are_refused_at_once_unless_a_node_is_on_its_way() {
    let c = Coordinator::start(Setup::default()).await;
    let spec = json!({"dim": 3, "shards": 1, "copies": 4});
    let refused = c.put("/api/v1/collections/wide", spec.clone()).await;
    let error = &refused.body["error"];
    assert_eq!((refused.status, &error["retryable"]), (StatusCode::CONFLICT, &json!(false)), "{error}");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("3 nodes take copies")), "{error}");
    assert_eq!(c.twin.calls("create_collection"), 1);

    let join = async {
        c.twin.change(|state| {
            let mut fourth = state.nodes[&NodeId(1)].clone();
            fourth.id = NodeId(4);
            state.nodes.insert(fourth.id, fourth);
        });
    };
    // Polled in this order: the node joins once the call waits.
    let (created, ()) = tokio::join!(biased; c.put("/api/v1/collections/wide", spec), join);
    assert_eq!((created.status, &created.body["copies"]), (StatusCode::CREATED, &json!(4)), "{}", created.body);
    c.stop().await;
}

#[tokio::test]
async fn an_alias_is_not_taken_for_its_collection() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_vectors("blue", 1).await;
    c.put("/api/v1/aliases/live", json!({"collection": "blue"})).await.ok();
    let refused = c.delete("/api/v1/collections/live").await;
    let error = &refused.body["error"];
    assert_eq!((refused.status, &error["type"]), (StatusCode::CONFLICT, &json!("conflict")), "{error}");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("alias of collection \"blue\"")), "{error}");
    c.get("/api/v1/collections/blue").await.ok();

    assert_eq!(c.delete("/api/v1/collections/blue").await.ok()["existed"], true);
    let gone = c.post("/api/v1/search", json!({"collection": "live", "vector": [1, 0, 0]})).await;
    let error = &gone.body["error"];
    assert_eq!(gone.status, StatusCode::NOT_FOUND, "{error}");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("\"blue\", which does not exist")), "{error}");
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("/api/v1/aliases/live")), "{error}");
    c.stop().await;
}

#[tokio::test]
async fn the_cluster_is_shown_with_shards_copies_and_digests() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_vectors("v", 2).await;
    c.put_circle("v", 10).await;
    let cluster = c.get("/api/v1/cluster").await.ok();
    assert_eq!(cluster["nodes"].as_array().map(Vec::len), Some(3));
    assert_eq!(cluster["collections"][0]["rows_live"], 10);
    let shard = &cluster["shards"][0];
    assert_eq!((&shard["health"], &shard["primary_term"]), (&json!("green"), &json!(1)));
    assert_eq!(shard["in_sync"].as_array().map(Vec::len), Some(2));
    assert_eq!(shard["copies"][0]["role"], "primary");
    assert_eq!(shard["copies"][0]["report"]["index_state"], "exact");
    let digest = c.post("/api/v1/shards/v/1:digest", json!({})).await.ok();
    assert_eq!(digest["agree"], true);
    assert_eq!(digest["copies"].as_array().map(Vec::len), Some(2));
    assert_eq!(c.post("/api/v1/shards/v/2:digest", json!({})).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(c.post("/api/v1/shards/v/1:destroy", json!({})).await.status, StatusCode::NOT_FOUND);
    c.stop().await;
}

#[tokio::test]
async fn readiness_names_the_obstacle() {
    let c = Coordinator::start(Setup::default()).await;
    assert_eq!(c.text("/livez").await, (StatusCode::OK, "ok\n".into()));
    // On a busy machine the catalog may not answer in time at first.
    let mut answer = c.text("/readyz").await;
    while !answer.0.is_success() {
        assert!(answer.1.contains("catalog"), "{answer:?}");
        answer = c.text("/readyz").await;
    }
    assert_eq!(answer.1, "ready\n");
    c.create_vectors("v", 1).await;
    c.twin.change(|state| {
        for group in state.shards.values_mut() {
            group.primary = None;
            group.version += 1;
        }
        for node in state.nodes.values_mut() {
            node.liveness = cluster_config::cluster_state::Liveness::Dead;
        }
    });
    let mut answer = c.text("/readyz").await;
    // The change travels by the watch.
    while answer.0.is_success() {
        answer = c.text("/readyz").await;
    }
    assert_eq!(answer.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.1, "not ready: shard 0 of collection v has neither a primary nor a readable copy\n");
    c.stop().await;
}

#[tokio::test]
async fn metrics_parse_and_the_hit_rate_moves() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_vectors("v", 2).await;
    c.put_circle("v", 10).await;
    let search = json!({"collection": "v", "vector": [1, 0, 0]});
    c.post("/api/v1/search", search.clone()).await.ok();
    let before = series(&c.text("/metrics").await.1);
    c.post("/api/v1/search", search).await.ok();
    let after = series(&c.text("/metrics").await.1);
    let rate = "cache_hit_rate{kind=\"retrieval\",tier=\"memory\"}";
    assert_eq!((before[rate], after[rate]), (0.0, 0.5));
    for name in [
        "query_duration_seconds_count{outcome=\"ok\",route=\"/api/v1/search\"}",
        "shard_answers_total{outcome=\"ok\"}",
        "catalog_pool_connections{state=\"open\"}",
        "cluster_nodes{liveness=\"alive\"}",
        "cluster_shards{state=\"writable\"}",
        "points_written_total",
    ] {
        assert!(after.get(name).is_some_and(|value| *value > 0.0), "{name}: {after:?}");
    }
    c.stop().await;
}

/// Reads the text format strictly: every line is a comment or `name{labels} value`.
fn series(text: &str) -> std::collections::BTreeMap<String, f64> {
    let lines =
        text.lines().filter(|line| !line.is_empty() && !line.starts_with("# HELP ") && !line.starts_with("# TYPE "));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value in {line:?}"));
            let bare = name.split('{').next().expect("has a part");
            assert!(bare.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':'), "{line:?}");
            assert!(name.contains('{') == name.ends_with('}'), "{line:?}");
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number in {line:?}")))
        })
        .collect()
}

#[tokio::test]
async fn the_description_has_every_path() {
    let c = Coordinator::start(Setup::default()).await;
    let description = c.get("/openapi.json").await.ok();
    for path in [
        "/api/v1/query",
        "/api/v1/search",
        "/api/v1/search:batch",
        "/api/v1/collections",
        "/api/v1/collections/{collection}",
        "/api/v1/collections/{collection}/points",
        "/api/v1/collections/{collection}/points:delete",
        "/api/v1/documents",
        "/api/v1/documents/{id}",
        "/api/v1/jobs/{id}",
        "/api/v1/jobs/{id}/events",
        "/api/v1/cluster",
        "/api/v1/nodes/{id}:drain",
        "/api/v1/nodes/{id}:undrain",
        "/api/v1/shards/{collection}/{index}:digest",
        "/api/v1/shards/{collection}/{index}:promote-replica",
        "/api/v1/shards/{collection}/{index}:force-promote",
        "/livez",
        "/readyz",
        "/metrics",
    ] {
        assert!(description["paths"][path].is_object(), "{path}");
    }
    let point = &description["components"]["schemas"]["PointBody"]["properties"]["vector"];
    assert_eq!(point["type"], "array");
    c.stop().await;
}
