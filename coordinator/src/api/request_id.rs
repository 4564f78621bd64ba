//! One id per request, in the response header, in error bodies and in the log.

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use uuid::Uuid;

tokio::task_local! {
    static REQUEST_ID: String;
}

/// Header read and written.
pub const REQUEST_ID_HEADER: &str = "x-request-id";
/// Longest id taken over from a caller.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The id of the request this task answers; empty outside of one.
pub fn current_request_id() -> String {
    REQUEST_ID.try_with(Clone::clone).unwrap_or_default()
}

/// Runs `future` under an id, for work that outlives its handler (streams).
pub async fn with_request_id<F: Future>(id: String, future: F) -> F::Output {
    REQUEST_ID.scope(id, future).await
}

/// Takes the caller's id, or makes one, for all that happens inside.
pub async fn assign(request: Request, next: Next) -> Response {
    let given = request.headers().get(REQUEST_ID_HEADER).and_then(|value| value.to_str().ok());
    let is_plain =
        |id: &&str| !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.bytes().all(|b| b.is_ascii_graphic());
    let id = given.filter(is_plain).map_or_else(|| Uuid::now_v7().to_string(), str::to_owned);
    REQUEST_ID
        .scope(id.clone(), async move {
            let mut response = next.run(request).await;
            if let Ok(value) = HeaderValue::from_str(&id) {
                response.headers_mut().insert(REQUEST_ID_HEADER, value);
            }
            response
        })
        .await
}
