//! Strict JSON in: bounded before it is buffered, unknown fields refused, the faulty field named.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use cluster_config::error::ErrorKind;
use cluster_config::limits;
use futures::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use crate::error::{Error, Result};
use crate::services::Services;

/// Bytes of all bodies buffered at one time; beyond it requests are refused as overload.
pub const BODY_BUDGET_BYTES: usize = 512 * 1024 * 1024;
/// The budget is counted in pieces of this size.
const BUDGET_UNIT_BYTES: usize = 64 * 1024;
/// Larger bodies are parsed off the reactor: at this size parsing costs about a millisecond.
const PARSE_INLINE_BYTES_MAX: usize = 64 * 1024;

/// Longest wait for the next bytes of a body: whoever stalls holds a part of the budget.
const BODY_GAP_MAX: Duration = Duration::from_secs(10);
/// Longest wait for a whole body: the largest at a few megabits a second.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);

/// Counts the bytes of buffered bodies.
#[derive(Clone)]
pub struct BodyBudget(Arc<Semaphore>);

impl Default for BodyBudget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BODY_BUDGET_BYTES / BUDGET_UNIT_BYTES)))
    }
}

/// A buffered body with its share of the budget.
pub struct Buffered {
    /// The bytes.
    pub bytes: Bytes,
    _share: Vec<OwnedSemaphorePermit>,
}

impl BodyBudget {
    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let units = bytes.div_ceil(BUDGET_UNIT_BYTES).max(1) as u32;
        Arc::clone(&self.0).try_acquire_many_owned(units).map_err(|_| {
            Error::refused(ErrorKind::Overloaded, "too many request bodies are being received", "retry with a pause")
        })
    }

    /// Reads a body of at most `bytes_max`. A declared length above it is refused before a byte is read.
    pub async fn read(&self, headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Buffered> {
        let declared = check_declared_length(headers, bytes_max)?;
        let mut share = vec![self.take(declared.unwrap_or(0))?];
        let mut taken = declared.unwrap_or(BUDGET_UNIT_BYTES).max(BUDGET_UNIT_BYTES);
        let mut buffer = Vec::with_capacity(declared.unwrap_or(0));
        let mut chunks = body.into_data_stream();
        let end = tokio::time::Instant::now() + BODY_TIMEOUT;
        loop {
            let gap_end = tokio::time::Instant::now() + BODY_GAP_MAX;
            let next = tokio::time::timeout_at(gap_end.min(end), chunks.next()).await;
            let Some(chunk) = next.map_err(|_| stalled())? else { break };
            let broken =
                |error| Error::refused(ErrorKind::InvalidArgument, format!("body: {error}"), "send the whole body");
            let chunk = chunk.map_err(broken)?;
            if buffer.len() + chunk.len() > bytes_max {
                return Err(too_large(bytes_max));
            }
            if buffer.len() + chunk.len() > taken {
                share.push(self.take(chunk.len())?);
                taken += chunk.len().div_ceil(BUDGET_UNIT_BYTES) * BUDGET_UNIT_BYTES;
            }
            buffer.extend_from_slice(&chunk);
        }
        Ok(Buffered { bytes: buffer.into(), _share: share })
    }
}

fn stalled() -> Error {
    let text = format!(
        "the body did not arrive: nothing for {} s, or not all of it within {} s",
        BODY_GAP_MAX.as_secs(),
        BODY_TIMEOUT.as_secs()
    );
    Error::refused(ErrorKind::InvalidArgument, text, "send it again over a faster connection, or in smaller pieces")
}

/// Refuses a `Content-Length` above the bound.
pub fn check_declared_length(headers: &HeaderMap, bytes_max: usize) -> Result<Option<usize>> {
    let Some(value) = headers.get(header::CONTENT_LENGTH) else { return Ok(None) };
    let declared: usize = value.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
    if declared > bytes_max { Err(too_large(bytes_max)) } else { Ok(Some(declared)) }
}

fn too_large(bytes_max: usize) -> Error {
    Error::refused(
        ErrorKind::TooLarge,
        format!("the body is larger than {bytes_max} bytes"),
        "split the request; several smaller ones may be sent at the same time",
    )
}

/// Parses strictly. Errors name the path (`points[3].vector[0]`), or line and column where the text is no JSON at all.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    // The plain parse is faster; the one that keeps track of the path runs only to name the fault.
    if let Ok(value) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let failed = match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Ok(value) => match deserializer.end() {
            Ok(()) => return Ok(value),
            Err(error) => (String::new(), error),
        },
        Err(error) => {
            let path = error.path().to_string();
            (path, error.into_inner())
        }
    };
    let (path, error) = failed;
    let problem = error.to_string();
    let place = if matches!(path.as_str(), "" | "." | "?") { "body".to_owned() } else { path };
    if error.is_syntax() || error.is_eof() {
        let hint = "send one JSON value; NaN and Infinity are not JSON";
        return Err(Error::field(place, format!("malformed JSON: {problem}"), hint));
    }
    let hint = if problem.starts_with("unknown field") {
        "remove the field; /openapi.json lists the known ones"
    } else {
        "correct the field; /openapi.json describes it"
    };
    Err(Error::field(place, problem, hint))
}

/// Parses off the reactor where the body is large. The budget's share is given back after parsing.
pub async fn parse_buffered<T: DeserializeOwned + Send + 'static>(buffered: Buffered) -> Result<T> {
    if buffered.bytes.len() <= PARSE_INLINE_BYTES_MAX {
        return parse_json(&buffered.bytes);
    }
    crate::ingest::blocking(move || parse_json(&buffered.bytes)).await
}

/// Refuses bodies that declare another type. No type at all is taken for JSON.
pub fn check_json_type(headers: &HeaderMap) -> Result<()> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or("").to_ascii_lowercase();
    let essence = text.split(';').next().unwrap_or("").trim();
    // curl -d declares a form unless told otherwise; the body says what it is.
    if essence == "application/json" || essence.ends_with("+json") || essence == "application/x-www-form-urlencoded" {
        return Ok(());
    }
    Err(Error::refused(
        ErrorKind::UnsupportedMedia,
        format!("content type {essence:?} is not JSON"),
        "send content-type: application/json",
    ))
}

/// A JSON body, strictly parsed.
pub struct StrictJson<T>(pub T);

impl<T: DeserializeOwned + Send + 'static> FromRequest<Arc<Services>> for StrictJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, services: &Arc<Services>) -> std::result::Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        check_json_type(&parts.headers)?;
        let buffered = services.body_budget.read(&parts.headers, body, limits::JSON_BODY_BYTES_MAX).await?;
        Ok(Self(parse_buffered(buffered).await?))
    }
}

/// Query string, strictly parsed.
pub struct StrictQuery<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> axum::extract::FromRequestParts<S> for StrictQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, _: &S) -> std::result::Result<Self, ApiError> {
        let parsed = axum::extract::Query::<T>::try_from_uri(&parts.uri);
        let query = parsed.map_err(|error| {
            let text = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Error::field("query string", text, "correct the parameter; /openapi.json describes it")
        })?;
        Ok(Self(query.0))
    }
}

/// Rows of a page: as asked for, within its bound.
pub(super) fn page_limit(limit: Option<u32>) -> Result<u32> {
    let limit = limit.unwrap_or(limits::PAGE_ROWS_DEFAULT);
    super::search::in_range("limit", f64::from(limit), 1.0, f64::from(limits::PAGE_ROWS_MAX))?;
    Ok(limit)
}

/// The instant at which a request ends: `timeout_ms` as asked, else the default. Errors: out of range.
pub fn deadline(timeout_ms: Option<u64>, default: Duration) -> Result<Instant> {
    let now = Instant::now();
    match timeout_ms {
        None => Ok(now + default),
        Some(timeout_ms) if (1..=limits::TIMEOUT_MS_MAX).contains(&timeout_ms) => {
            Ok(now + Duration::from_millis(timeout_ms))
        }
        Some(timeout_ms) => Err(Error::field(
            "timeout_ms",
            format!("{timeout_ms} is out of range"),
            format!("use 1 to {}", limits::TIMEOUT_MS_MAX),
        )),
    }
}

/// JSON out.
pub fn json<T: serde::Serialize>(status: axum::http::StatusCode, body: &T) -> Response {
    use axum::response::IntoResponse;
    (status, axum::Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Point {
        #[expect(dead_code, reason = "only parsed")]
        vector: Vec<f32>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Points {
        #[expect(dead_code, reason = "only parsed")]
        points: Vec<Point>,
    }

    fn fault(text: &str) -> String {
        parse_json::<Points>(text.as_bytes()).expect_err("is refused").to_string()
    }

    #[test]
    fn faults_are_named_by_path() {
        assert!(fault(r#"{"points":[{"vector":[1]},{"vector":[0,"x"]}]}"#).starts_with("points[1].vector[1]: "));
        assert!(fault(r#"{"points":[{"vector":[1],"vektor":2}]}"#).contains("unknown field `vektor`"));
        assert!(fault(r#"{"points":[{"vector":[NaN]}]}"#).contains("malformed JSON"));
        assert!(fault(r#"{"points":[]} x"#).contains("trailing characters"));
        assert!(fault("").contains("malformed JSON"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_json::<Points>(&bytes);
        }
    }

    #[tokio::test]
    async fn bodies_beyond_the_bound_are_refused_declared_or_not() {
        let budget = BodyBudget::default();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, "1000000000".parse().expect("header"));
        let never_read = Body::from_stream(futures::stream::pending::<std::result::Result<Bytes, std::io::Error>>());
        let refused = budget.read(&headers, never_read, 1000).await.map(|_| ()).expect_err("declared");
        assert_eq!(refused.kind(), ErrorKind::TooLarge);
        let refused = budget.read(&HeaderMap::new(), Body::from(vec![0; 1001]), 1000).await.map(|_| ());
        assert_eq!(refused.expect_err("counted").kind(), ErrorKind::TooLarge);
        assert_eq!(
            budget.read(&HeaderMap::new(), Body::from(vec![0; 1000]), 1000).await.expect("fits").bytes.len(),
            1000
        );
    }
}
