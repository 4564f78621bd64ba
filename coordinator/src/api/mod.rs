//! HTTP. Handlers translate: strict JSON in, walks called, JSON or events out. What holds for every request stands here: routes,
//! request ids, admission, counting, panics and unknown paths.

pub mod aliases;
pub mod auth;
pub mod backends;
pub mod catalog;
pub mod cluster;
pub mod collections;
mod compression;
mod conditional;
pub mod document_list;
pub mod documents;
pub mod doors;
pub mod error;
pub mod filter;
pub mod health;
pub mod jobs;
pub mod json;
pub mod keys;
pub mod nodes;
mod ollama;
mod openai;
pub mod openapi;
pub mod points;
pub mod query;
pub mod request_id;
pub mod search;
pub mod search_get;
pub mod shards;
pub mod tenants;

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use cluster_config::error::ErrorKind;
use cluster_config::limits;
use futures::StreamExt;
use prometheus::IntGauge;
use tokio::sync::OwnedSemaphorePermit;
use tower_http::catch_panic::CatchPanicLayer;

use self::error::ApiError;
use crate::error::Error;
use crate::services::Services;

/// The whole API.
pub fn router(services: Arc<Services>) -> Router {
    let api = Router::new()
        .route("/api/v1/search", post(search::post_search).get(search_get::get_search))
        .route("/api/v1/search:batch", post(search::post_search_batch))
        .route("/api/v1/query", post(query::post_query))
        .route("/api/v1/collections", get(collections::list_collections))
        .route(
            "/api/v1/collections/{collection}",
            put(collections::put_collection).get(collections::get_collection).delete(collections::delete_collection),
        )
        .route("/api/v1/collections/{collection}/points", put(points::put_points))
        .route("/api/v1/collections/{collection}/points:delete", post(points::delete_points))
        .route("/api/v1/documents", post(documents::post_document).get(document_list::list_documents))
        .route("/api/v1/documents/{id}", get(documents::get_document).delete(documents::delete_document))
        .route("/api/v1/jobs", get(jobs::list_jobs))
        .route("/api/v1/jobs/{id}/retry", post(jobs::retry_job))
        .route("/api/v1/jobs/{id}", get(jobs::get_job).delete(jobs::delete_job))
        .route("/api/v1/jobs/{id}/events", get(jobs::get_job_events))
        .route("/api/v1/cluster", get(cluster::get_cluster))
        .route("/api/v1/aliases", get(aliases::list_aliases))
        .route("/api/v1/aliases/{alias}", put(aliases::put_alias).delete(aliases::delete_alias))
        .route("/api/v1/tenants", get(tenants::list_tenants))
        .route("/api/v1/tenants/{tenant}", put(tenants::put_tenant).get(tenants::get_tenant))
        .route("/api/v1/tenants/{tenant}/usage", get(tenants::get_usage))
        .route("/api/v1/keys", post(keys::post_key).get(keys::list_keys))
        .route("/api/v1/keys/{id}", delete(keys::delete_key))
        .route("/api/v1/audit", get(keys::list_audit))
        .route("/api/v1/catalog", get(catalog::get_catalog))
        .route("/api/v1/catalog/upkeep", post(catalog::post_upkeep))
        .route("/api/v1/backends", get(backends::list_backends).post(backends::post_backend))
        .route("/api/v1/backends/{name}", delete(backends::delete_backend))
        .route("/api/v1/nodes/{action}", post(nodes::post_node_action))
        .route("/api/v1/shards/{collection}/{action}", post(shards::post_shard_action));
    let api = guarded(api, &services);
    let openai = guarded(openai::routes(), &services);
    let openai = openai.method_not_allowed_fallback(unknown_method).layer(map_response(openai::reshape));
    let ollama = guarded(ollama::routes(), &services);
    let ollama = ollama.method_not_allowed_fallback(unknown_method).layer(map_response(ollama::reshape));
    let open = Router::new()
        .route("/livez", get(health::get_livez))
        .route("/readyz", get(health::get_readyz))
        .route("/metrics", get(health::get_metrics))
        .route("/openapi.json", get(openapi::get_openapi));
    api.merge(openai)
        .merge(ollama)
        .merge(ollama::open_routes())
        .merge(open)
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        // Bodies are bounded where they are read, with an error of ours.
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(on_panic))
        .layer(from_fn_with_state(Arc::clone(&services), count))
        .layer(from_fn(request_id::assign))
        .layer(compression::layer())
        .with_state(services)
}

/// What stands before every route that does something: a place among the requests, then a caller who may.
fn guarded(routes: Router<Arc<Services>>, services: &Arc<Services>) -> Router<Arc<Services>> {
    routes
        .layer(from_fn_with_state(Arc::clone(services), auth::authenticate))
        .layer(from_fn_with_state(Arc::clone(services), admit))
}

/// Refuses requests beyond the bound at once: a queue here would only hide the overload.
async fn admit(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    match Arc::clone(&services.admission).try_acquire_owned() {
        Ok(permit) => {
            let response = next.run(request).await;
            let media_type = response.headers().get(header::CONTENT_TYPE);
            let is_stream = media_type.is_some_and(|value| value == "text/event-stream" || value == ollama::NDJSON);
            if is_stream { hold_while_streaming(response, permit) } else { response }
        }
        Err(_) => {
            let text = format!("{} requests are being answered", limits::REQUESTS_IN_FLIGHT_MAX);
            ApiError(Error::refused(ErrorKind::Overloaded, text, "retry with a pause")).into_response()
        }
    }
}

/// A stream's place is free when its body is gone, not when its handler has returned.
fn hold_while_streaming(response: Response, permit: OwnedSemaphorePermit) -> Response {
    let (parts, body) = response.into_parts();
    let frames = body.into_data_stream().map(move |frame| {
        let _held = &permit;
        frame
    });
    Response::from_parts(parts, Body::from_stream(frames))
}

/// Counts and times every request under its route's pattern, never its path.
async fn count(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route =
        request.extensions().get::<MatchedPath>().map_or_else(|| "unknown".to_owned(), |path| path.as_str().to_owned());
    let method = match request.method().as_str() {
        known @ ("GET" | "POST" | "PUT" | "DELETE" | "HEAD") => known.to_owned(),
        _ => "OTHER".to_owned(),
    };
    let in_flight = InFlight::begin(services.metrics.requests_in_flight.clone());
    let response = next.run(request).await;
    drop(in_flight);
    let status = response.status();
    services.metrics.requests.with_label_values(&[&route, &method, &status.as_u16().to_string()]).inc();
    if matches!(route.as_str(), "/api/v1/search" | "/api/v1/search:batch" | "/api/v1/query") {
        let outcome = if status.is_success() {
            "ok"
        } else if status.is_client_error() {
            "refused"
        } else {
            "failed"
        };
        services.metrics.query_duration.with_label_values(&[&route, outcome]).observe(began.elapsed().as_secs_f64());
    }
    response
}

/// A request that is counted until this is dropped, also because its client has gone.
struct InFlight(IntGauge);

impl InFlight {
    fn begin(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

async fn unknown_path(request: Request) -> Response {
    let text = format!("no such path: {}", request.uri().path());
    let refused = Error::refused(ErrorKind::NotFound, text, "/openapi.json lists all paths");
    let response = ApiError(refused).into_response();
    if request.uri().path().starts_with("/v1/") { openai::reshape(response).await } else { response }
}

async fn unknown_method(request: Request) -> Response {
    let text = format!("{} is not possible on {}", request.method(), request.uri().path());
    let refused = Error::refused(ErrorKind::InvalidArgument, text, "/openapi.json lists the methods of each path");
    let mut response = ApiError(refused).into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// The last net: a bug in a handler costs that request, and is counted and logged as an error.
fn on_panic(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text =
        panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    ApiError(Error::internal(format!("panic: {}", text.unwrap_or_default()))).into_response()
}

/// Streams must not be held back by proxies.
pub(crate) fn unbuffered(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", header::HeaderValue::from_static("no"));
    response
}
