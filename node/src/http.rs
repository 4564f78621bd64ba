//! Health and metrics of a node over HTTP. Everything else a node does is gRPC.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Encoder, TextEncoder};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::telemetry::Metrics;

/// What the health page asks of the process.
pub trait Health: Send + Sync + 'static {
    /// `Ok` when the node serves; else the reason, in one line.
    fn ready(&self) -> Result<(), String>;
    /// Sets the gauges that are read rather than counted.
    fn refresh(&self, metrics: &Metrics);
}

#[derive(Clone)]
struct Pages {
    health: Arc<dyn Health>,
    metrics: Arc<Metrics>,
}

/// Serves `/livez`, `/readyz` and `/metrics` on `listen` until `stop`, and returns the port. Errors: the port is taken.
pub async fn serve(
    listen: SocketAddr,
    health: Arc<dyn Health>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> std::io::Result<(u16, JoinHandle<std::io::Result<()>>)> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    let port = listener.local_addr()?.port();
    let router = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(text))
        .with_state(Pages { health, metrics });
    let serving = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).into_future();
    Ok((port, tokio::spawn(serving)))
}

async fn ready(State(pages): State<Pages>) -> Response {
    match pages.health.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn text(State(pages): State<Pages>) -> Response {
    pages.health.refresh(&pages.metrics);
    let encoder = TextEncoder::new();
    let mut body = Vec::new();
    match encoder.encode(&pages.metrics.registry.gather(), &mut body) {
        Ok(()) => ([(CONTENT_TYPE, encoder.format_type().to_owned())], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
