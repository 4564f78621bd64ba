//! Who calls: the middleware that finds out, and the extractor that hands it to handlers.
//!
//! What a route needs is decided here in one place, from its method and pattern. A route that is not known needs the largest
//! scope, and a handler on a route outside of the middleware gets no caller at all: what is forgotten is closed.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::Method;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use cluster_config::limits;
use futures::FutureExt;
use uuid::Uuid;

use super::error::ApiError;
use super::on_panic;
use super::request_id::{current_request_id, with_request_id};
use crate::catalog::operators::AuditRow;
use crate::clock::unix_ms;
use crate::error::{Error, Result};
use crate::services::Services;
pub use crate::tenants::{Caller, Scope};

/// The scope that a route needs. `route` is its pattern, as `/api/v1/jobs/{id}`.
pub fn required_scope(method: &Method, route: &str) -> Scope {
    let is_read = is_read(method);
    match route {
        "/api/v1/search" | "/api/v1/search:batch" | "/api/v1/query" => Scope::Read,
        "/api/v1/collections" | "/api/v1/collections/{collection}" | "/api/v1/aliases" if is_read => Scope::Read,
        // Of its own tenant; the handler asks more for another's.
        "/api/v1/tenants/{tenant}/usage" if is_read => Scope::Read,
        "/api/v1/collections/{collection}/points" | "/api/v1/collections/{collection}/points:delete" => Scope::Write,
        "/api/v1/documents"
        | "/api/v1/documents/{id}"
        | "/api/v1/jobs"
        | "/api/v1/jobs/{id}"
        | "/api/v1/jobs/{id}/events"
        | "/api/v1/jobs/{id}/retry" => {
            if is_read {
                Scope::Read
            } else {
                Scope::Write
            }
        }
        "/api/generate" | "/api/chat" | "/api/embed" | "/api/embeddings" | "/api/tags" | "/api/show" => Scope::Read,
        openai if openai.starts_with("/v1/") => Scope::Read,
        _ => Scope::Admin,
    }
}

/// Finds out who calls and whether they may; the handler gets the [`Caller`].
pub async fn authenticate(State(services): State<Arc<Services>>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let needed = required_scope(request.method(), route);
    let caller = match services.tenants.identify(request.headers()).await {
        Ok(caller) => caller,
        Err(error) => return ApiError(error).into_response(),
    };
    let is_audited = needed == Scope::Admin && !is_read(request.method());
    let call = is_audited.then(|| audit_row(&caller, &request));
    let permitted = permit(&services, &caller, needed).await;
    request.extensions_mut().insert(caller);
    let answer = async move {
        match permitted {
            Ok(()) => next.run(request).await,
            Err(error) => ApiError(error).into_response(),
        }
    };
    match call {
        None => answer.await,
        Some(call) => audited(&services, call, answer).await,
    }
}

/// Answers and notes the call, whoever waits for the answer: a client that leaves takes neither back. Cancel: it goes on.
async fn audited(
    services: &Arc<Services>,
    call: AuditRow,
    answer: impl Future<Output = Response> + Send + 'static,
) -> Response {
    let noting = Arc::clone(services);
    let noted = with_request_id(call.request_id.clone(), async move {
        let response = AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(on_panic);
        note(&noting, AuditRow { status: response.status().as_u16(), ..call }).await;
        Ok(response)
    });
    services.ingest.see_through(noted).await.unwrap_or_else(|error| ApiError(error).into_response())
}

fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

async fn permit(services: &Services, caller: &Caller, needed: Scope) -> Result<()> {
    services.tenants.admit(caller).await?;
    caller.check(needed)
}

/// What is written down of an administrative call before it is made.
fn audit_row(caller: &Caller, request: &Request) -> AuditRow {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let mut target = request.uri().path().to_owned();
    target.truncate(target.floor_char_boundary(limits::AUDIT_TARGET_BYTES_MAX));
    AuditRow {
        audit_id: Uuid::now_v7(),
        at_ms: unix_ms(),
        tenant: caller.tenant.to_string(),
        key_id: caller.key_id,
        request_id: current_request_id(),
        action: format!("{} {route}", request.method()),
        target,
        status: 0,
    }
}

/// Before the caller has its answer, the call is in the log and in the catalog. If the catalog fails the call is not undone: the
/// log has it.
async fn note(services: &Services, call: AuditRow) {
    tracing::info!(
        tenant = call.tenant, key_id = ?call.key_id, action = call.action, target = call.target, status = call.status,
        request_id = call.request_id, "administrative call"
    );
    if let Err(error) = services.catalog.append_audit(&call).await {
        tracing::error!(%error, request_id = call.request_id, "the call is in the log only, not in the catalog's audit");
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> std::result::Result<Self, ApiError> {
        let caller = parts.extensions.get::<Caller>().cloned();
        caller.ok_or_else(|| ApiError(Error::internal("the route is not behind api::auth::authenticate")))
    }
}
