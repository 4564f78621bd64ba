//! `/livez`, `/readyz`, `/metrics`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use cluster_config::cluster_state::Liveness;

use crate::catalog::jobs::JobState;
use crate::services::Services;

/// Longest wait of a probe for the catalog: one that is given up tells nobody what is wrong, and Kubernetes waits for a second.
const PROBE_WAIT: Duration = Duration::from_millis(750);
/// Longest wait of a scrape, which counts all jobs: Prometheus waits for ten seconds.
const SCRAPE_WAIT: Duration = Duration::from_secs(3);

/// The process runs.
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = 200, body = String)))]
pub async fn get_livez() -> &'static str {
    "ok\n"
}

/// The process can answer; otherwise one line says what is missing.
#[utoipa::path(get, path = "/readyz", tag = "health", responses((status = 200, body = String), (status = 503, body = String)))]
pub async fn get_readyz(State(services): State<Arc<Services>>) -> Response {
    match find_obstacle(&services).await {
        None => (StatusCode::OK, "ready\n").into_response(),
        Some(obstacle) => {
            (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], format!("not ready: {obstacle}\n"))
                .into_response()
        }
    }
}

/// The first thing in the way, or nothing.
async fn find_obstacle(services: &Services) -> Option<String> {
    if services.draining.load(Ordering::Relaxed) {
        return Some("shutting down".to_owned());
    }
    let state = services.view.state();
    if state.version == 0 {
        return Some("no node has sent the cluster state yet".to_owned());
    }
    for group in state.shards.values() {
        let alive = |node| state.nodes.get(&node).is_some_and(|node| node.liveness == Liveness::Alive);
        if group.primary.is_none() && !group.readable().any(|(_, record)| alive(record.node)) {
            let name = state.collections.get(&group.shard.collection).map_or("?", |collection| &collection.spec.name);
            return Some(format!(
                "shard {} of collection {name} has neither a primary nor a readable copy",
                group.shard.index
            ));
        }
    }
    let answered = services.catalog.within(PROBE_WAIT, services.catalog.check()).await;
    answered.err().map(|error| error.to_string())
}

/// Series in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "health", responses((status = 200, body = String)))]
pub async fn get_metrics(State(services): State<Arc<Services>>) -> Response {
    refresh_gauges(&services).await;
    match services.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics were not rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Gauges that mirror a state are read when asked for. What the catalog does not tell in time stays as it was told last.
async fn refresh_gauges(services: &Services) {
    let metrics = &services.metrics;
    metrics.show_catalog_pool(services.catalog.pool_counts());
    let state = services.view.state();
    metrics.state_version.set(i64::try_from(state.version).unwrap_or(i64::MAX));
    let alive = state.nodes.values().filter(|node| node.liveness == Liveness::Alive).count();
    metrics.nodes.with_label_values(&["alive"]).set(alive as i64);
    metrics.nodes.with_label_values(&["dead"]).set((state.nodes.len() - alive) as i64);
    let writable = state.shards.values().filter(|group| group.primary.is_some()).count();
    metrics.shards.with_label_values(&["writable"]).set(writable as i64);
    metrics.shards.with_label_values(&["without_primary"]).set((state.shards.len() - writable) as i64);
    let catalog = &services.catalog;
    let told = async { Ok((catalog.upkeep_runs().await?, catalog.job_counts().await?)) };
    match catalog.within(SCRAPE_WAIT, told).await {
        Ok((runs, counts)) => {
            metrics.show_catalog_upkeep(&runs);
            for job_state in JobState::ALL {
                let count = counts.iter().find(|(known, _)| *known == job_state).map_or(0, |(_, count)| *count);
                metrics.job_states.with_label_values(&[job_state.as_str()]).set(count);
            }
        }
        Err(error) => tracing::debug!(%error, "the catalog's gauges stay as they were"),
    }
}
