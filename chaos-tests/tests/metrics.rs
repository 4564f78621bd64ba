//! `/metrics` of every process is read by a strict reader of the Prometheus text format, and moves as it should.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use chaos_tests::client::Client;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::wait;
use serde_json::json;

/// Series (name with labels) to value. Errors: a line that the text format does not allow.
fn parse(text: &str) -> anyhow::Result<BTreeMap<String, f64>> {
    let mut series = BTreeMap::new();
    let mut typed = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').context("TYPE without a kind")?;
            ensure!(["counter", "gauge", "histogram", "summary", "untyped"].contains(&kind), "unknown type: {line}");
            ensure!(typed.insert(name.to_owned(), kind.to_owned()).is_none(), "typed twice: {name}");
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let (key, value) = line.rsplit_once(' ').with_context(|| format!("no value: {line}"))?;
        let name = key.split('{').next().unwrap_or_default();
        let well_named = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
        ensure!(well_named && !name.is_empty(), "bad name: {line}");
        ensure!(key.contains('{') == key.ends_with('}'), "broken labels: {line}");
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        ensure!(typed.contains_key(name) || typed.contains_key(base), "no TYPE before: {line}");
        let value = value.parse().with_context(|| format!("bad value: {line}"))?;
        ensure!(series.insert(key.to_owned(), value).is_none(), "the same series twice: {line}");
    }
    Ok(series)
}

fn sum(series: &BTreeMap<String, f64>, prefix: &str) -> anyhow::Result<f64> {
    let found: Vec<f64> = series.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(_, value)| *value).collect();
    if found.is_empty() {
        bail!("no series begins with {prefix}");
    }
    Ok(found.iter().sum())
}

async fn scrape(client: &Client) -> anyhow::Result<BTreeMap<String, f64>> {
    parse(&client.text("/metrics").await?)
}

#[test]
fn the_reader_refuses_what_is_not_the_format() {
    for bad in ["a 1", "# TYPE a gauge\na{x=\"1\" 1", "# TYPE a gauge\na one", "# TYPE a gauge\na 1\na 2"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
    assert!(parse("# HELP a b\n# TYPE a gauge\na{x=\"1\"} 1\n").is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_parse_and_the_cache_hit_rate_moves() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let client = cluster.client();
    client.create_collection("c", &json!({ "dim": 4, "shards": 2, "copies": 2 })).await?;
    client.put_points("c", &[("a".into(), vec![1.0, 0.0, 0.0, 0.0])]).await?.ok()?;
    let search = || client.search("c", &[0.5, 0.5, 0.0, 0.0], json!({ "top_k": 1 }));
    search().await?.ok()?;
    let first = scrape(&client).await?;
    for _ in 0..4 {
        search().await?.ok()?;
    }
    let second = scrape(&client).await?;
    let rate = |series| sum(series, "cache_hit_rate");
    ensure!(rate(&second)? > rate(&first)?, "cache_hit_rate stayed at {}", rate(&first)?);
    ensure!(
        sum(&second, "query_duration_seconds_count")? > sum(&first, "query_duration_seconds_count")?,
        "not counted"
    );

    for (port, prefixes) in cluster.node_http_ports().iter().zip([
        ["susui_shard_applied_seqno", "susui_raft_term", "susui_pool_queued"],
        ["susui_shard_rows_live", "susui_raft_applied_index", "susui_pool_queued"],
        ["susui_shard_is_primary", "susui_raft_is_leader", "susui_cluster_state_version"],
    ]) {
        let node = Client::new(*port);
        for prefix in prefixes {
            wait::until(prefix, Duration::from_secs(10), || async { sum(&scrape(&node).await?, prefix) }).await?;
        }
    }
    cluster.shut_down().await
}
