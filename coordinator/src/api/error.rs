//! The one map from the crate's errors to HTTP: status, body, `Retry-After`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cluster_config::error::ErrorKind;
use serde::Serialize;
use utoipa::ToSchema;

use super::request_id::current_request_id;
use crate::error::Error;
use crate::retrieve::ShardCounts;

/// The body of every error of the native API.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// What went wrong and what to do.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// snake_case word from a closed list.
    #[serde(rename = "type")]
    #[schema(example = "invalid_argument")]
    pub kind: &'static str,
    /// What went wrong; names the field where one is at fault.
    #[schema(example = "points[3].vector: the vector has 3 components, the collection has 384")]
    pub message: String,
    /// What to do about it.
    pub hint: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// Stands in the log, too.
    pub request_id: String,
    /// Where the error is about missing shards: how many answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<ShardCounts>,
    /// The field at fault, for the front doors, whose clients read it by itself.
    #[serde(skip)]
    pub field: Option<String>,
}

/// An error on its way out.
#[derive(Debug)]
pub struct ApiError(pub Error);

impl<E: Into<Error>> From<E> for ApiError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

/// What handlers return.
pub type ApiResult<T> = Result<T, ApiError>;

/// The status of each kind.
pub fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::AlreadyExists | ErrorKind::Conflict | ErrorKind::TokenVoid => StatusCode::CONFLICT,
        ErrorKind::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::UnsupportedMedia => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ErrorKind::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::NotPrimary
        | ErrorKind::StaleTerm
        | ErrorKind::NotEnoughCopies
        | ErrorKind::Overloaded
        | ErrorKind::Unavailable
        | ErrorKind::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::StorageFull => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Corrupt | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The body of an error; the text of internal ones goes to the log instead.
pub fn error_body(error: &Error) -> ErrorBody {
    let kind = error.kind();
    let request_id = current_request_id();
    let message = if matches!(kind, ErrorKind::Internal | ErrorKind::Corrupt) {
        tracing::error!(request_id, %error, kind = %kind, "request failed");
        "the request failed inside the cluster".to_owned()
    } else {
        tracing::debug!(request_id, %error, kind = %kind, "request refused");
        error.to_string()
    };
    ErrorBody {
        error: ErrorDetail {
            kind: kind.as_str(),
            message,
            hint: error.hint(),
            retryable: kind.is_retryable(),
            request_id,
            shards: error.counts(),
            field: error.field_name().map(str::to_owned),
        },
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = error_body(&self.0);
        let detail = body.error.clone();
        let mut response = (status_of(self.0.kind()), Json(body)).into_response();
        // The front doors write it anew in the shape of their clients.
        response.extensions_mut().insert(detail);
        if let Some(after) = self.0.retry_after() {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs_f64().ceil().max(1.0) as u64));
        }
        if self.0.kind() == ErrorKind::Unauthenticated {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_faults_are_4xx_and_retryable_ones_say_when() {
        for kind in ErrorKind::ALL {
            let status = status_of(kind);
            if kind.is_deterministic() {
                assert!(status.is_client_error(), "{kind}");
            }
            let response = ApiError(Error::refused(kind, "m", "h")).into_response();
            if matches!(status.as_u16(), 429 | 503) && kind.is_retryable() {
                assert!(response.headers().contains_key(header::RETRY_AFTER), "{kind}");
            }
        }
    }
}
