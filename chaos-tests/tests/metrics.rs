//! `/metrics` of every process is the Prometheus text format, read by a library that knows its rules, and moves as it should.

use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::client::Client;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::wait;
use openmetrics_parser::prometheus::parse_prometheus;
use openmetrics_parser::{MetricsExposition, PrometheusType, PrometheusValue};
use serde_json::json;

type Series = MetricsExposition<PrometheusType, PrometheusValue>;

/// Sum over the samples of one metric; of a histogram, its observations. Errors: there is no such metric, or none of its samples.
fn sum(series: &Series, name: &str) -> anyhow::Result<f64> {
    let family = series.families.get(name).with_context(|| format!("no metric {name}"))?;
    let values = family.iter_samples().map(|sample| match &sample.value {
        PrometheusValue::Counter(counter) => counter.value.as_f64(),
        PrometheusValue::Gauge(value) | PrometheusValue::Unknown(value) => value.as_f64(),
        PrometheusValue::Histogram(histogram) => histogram.count.unwrap_or_default() as f64,
        PrometheusValue::Summary(summary) => summary.count.unwrap_or_default() as f64,
    });
    let values: Vec<f64> = values.collect();
    ensure!(!values.is_empty(), "no sample of {name}");
    Ok(values.iter().sum())
}

async fn scrape(client: &Client) -> anyhow::Result<Series> {
    parse_prometheus(&client.text("/metrics").await?).map_err(|error| anyhow::anyhow!("not the text format: {error}"))
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
    // A hit needs the shards to stand still: the first entries of a term and the second copies' arrival may come in between.
    let moved = wait::until("cache_hit_rate to rise", Duration::from_secs(10), || async {
        search().await?.ok()?;
        let now = scrape(&client).await?;
        let rate = |series| sum(series, "cache_hit_rate");
        ensure!(rate(&now)? > rate(&first)?, "cache_hit_rate stayed at {}", rate(&first)?);
        Ok(now)
    });
    let queries = |series| sum(series, "query_duration_seconds");
    ensure!(queries(&moved.await?)? > queries(&first)?, "not counted");

    for (node, prefixes) in cluster.node_clients().iter().zip([
        ["susui_shard_applied_seqno", "susui_raft_term", "susui_pool_queued"],
        ["susui_shard_rows_live", "susui_raft_applied_index", "susui_pool_queued"],
        ["susui_shard_is_primary", "susui_raft_is_leader", "susui_cluster_state_version"],
    ]) {
        for prefix in prefixes {
            wait::until(prefix, Duration::from_secs(10), || async { sum(&scrape(node).await?, prefix) }).await?;
        }
    }
    cluster.shut_down().await
}
