//! What operators change by hand: nodes that drain, read replicas that vote, shards recovered by force.

use cluster_config::shard_group::CopyRole;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::support::{Coordinator, Setup};

#[tokio::test]
async fn a_node_drains_until_it_is_undrained() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_vectors("v", 3).await;
    let drained = c.post("/api/v1/nodes/2:drain", json!({})).await.ok();
    assert_eq!((&drained["lifecycle"], &drained["changed"]), (&json!("draining"), &json!(true)));
    assert_eq!(drained["primaries"], 1, "one of three primaries is on each node");
    assert_eq!(c.post("/api/v1/nodes/2:drain", json!({})).await.ok()["changed"], false);
    let lifecycle = |cluster: &Value| cluster["nodes"][1]["lifecycle"].clone();
    assert_eq!(lifecycle(&c.get("/api/v1/cluster").await.ok()), "draining");
    assert_eq!(c.post("/api/v1/nodes/2:undrain", json!({})).await.ok()["changed"], true);
    assert_eq!(lifecycle(&c.get("/api/v1/cluster").await.ok()), "active");

    for path in ["/api/v1/nodes/9:drain", "/api/v1/nodes/x:drain"] {
        let refused = c.post(path, json!({})).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{path}");
        assert!(refused.body["error"]["hint"].as_str().expect("a hint").contains("1, 2, 3"), "{}", refused.body);
    }
    assert_eq!(c.post("/api/v1/nodes/2:destroy", json!({})).await.status, StatusCode::NOT_FOUND);
    assert_eq!(c.post("/api/v1/nodes/2", json!({})).await.status, StatusCode::NOT_FOUND);
    c.stop().await;
}

#[tokio::test]
async fn a_read_replica_votes() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_vectors("v", 1).await;
    let shard = |cluster: &Value| cluster["shards"][0]["copies"].as_array().cloned().unwrap_or_default();
    let copies = shard(&c.get("/api/v1/cluster").await.ok());
    let replica = copies[1]["copy"].as_u64().expect("an id");
    c.twin.change(|state| {
        for group in state.shards.values_mut() {
            group.in_sync.retain(|copy| copy.0 != replica);
            group
                .copies
                .iter_mut()
                .filter(|(copy, _)| copy.0 == replica)
                .for_each(|(_, r)| r.role = CopyRole::ReadReplica);
        }
    });
    let path = "/api/v1/shards/v/0:promote-replica";
    assert_eq!(c.post(path, json!({"copy": replica})).await.ok()["changed"], true);
    assert_eq!(c.post(path, json!({"copy": replica})).await.ok()["changed"], false);
    for (body, field) in [(json!({"copy": 99}), "copy"), (json!({}), "copy"), (json!({"copy": replica, "x": 1}), "x")] {
        let refused = c.post(path, body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.body);
        assert!(refused.body["error"]["message"].as_str().expect("text").contains(field), "{}", refused.body);
    }
    c.stop().await;
}

#[tokio::test]
async fn a_forced_promotion_is_looked_at_before_it_is_done_once() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_vectors("v", 1).await;
    let session = c.put_circle("v", 4).await["session"].as_str().expect("a token").to_owned();
    let cluster = c.get("/api/v1/cluster").await.ok();
    let copy = cluster["shards"][0]["copies"][1]["copy"].clone();
    let path = "/api/v1/shards/v/0:force-promote";

    let look = c.post(path, json!({ "copy": copy })).await.ok();
    assert_eq!((&look["done"], &look["objection"]), (&json!(false), &json!("a member of the in-sync set lives")));
    assert_eq!(look["copies"].as_array().map(Vec::len), Some(2));
    let version = look["register_version"].clone();
    let accept = json!({"copy": copy, "accept_data_loss": true, "expect_version": version, "by": "ada"});
    let refused = c.post(path, accept.clone()).await;
    assert_eq!(refused.status, StatusCode::CONFLICT, "{}", refused.body);

    let with = |extra: Value| {
        let mut body = accept.clone();
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        body
    };
    for (body, field) in [
        (json!({"copy": copy, "accept_data_loss": true, "by": "ada"}), "expect_version"),
        (json!({"copy": copy, "accept_data_loss": true, "expect_version": version}), "by"),
        (with(json!({"by": "x".repeat(65)})), "by"),
        (json!({"copy": 99}), "copy"),
    ] {
        let refused = c.post(path, body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.body);
        assert!(refused.body["error"]["message"].as_str().expect("text").starts_with(field), "{}", refused.body);
    }

    let force = with(json!({"override_live": true}));
    let done = c.post(path, force.clone()).await.ok();
    assert_eq!((&done["done"], &done["lineage"]), (&json!(true), &json!(2)));
    let again = c.post(path, force).await;
    assert_eq!(again.status, StatusCode::CONFLICT, "the register's version lets it happen once: {}", again.body);

    // Whoever holds a token of the former lineage is told, rather than shown less than it has seen.
    let search = json!({"collection": "v", "vector": [1.0, 0.0, 0.1], "consistency": "session", "session": session});
    let void = c.post("/api/v1/search", search).await;
    assert_eq!(void.body["error"]["type"], "token_void", "{}", void.body);
    c.stop().await;
}
