//! An HTTP response that is still being written, as generation events. Nothing is held back: what a network read brings is
//! decoded and passed on before the next read.

use std::collections::VecDeque;
use std::time::Duration;

use cluster_config::limits;
use futures::StreamExt;
use reqwest::{Response, StatusCode};

use super::backend::BackendError;
use super::{EventStream, GenerateError, GenerateEvent};

/// Bytes of an error body that are read for its message.
const ERROR_BODY_BYTES_MAX: usize = 4096;
/// Characters of a backend's message that are passed on.
const MESSAGE_CHARS_MAX: usize = 300;

/// One wire protocol's way from bytes to events. Knows nothing of connections.
pub(super) trait Decoder: Send + 'static {
    /// Takes the next bytes, however they were cut; appends the events they complete. An `Err` is the backend's own error or a
    /// breach of the protocol, and the end.
    fn push(&mut self, bytes: &[u8], events: &mut VecDeque<GenerateEvent>) -> Result<(), String>;

    /// The connection was closed. `Err` if the answer was not complete.
    fn finish(&mut self, events: &mut VecDeque<GenerateEvent>) -> Result<(), String>;
}

/// Events of a successful response. Cancel: dropping the stream drops the response, which closes the connection if
/// the body is not yet complete.
pub(super) fn events(backend: String, response: Response, mut decoder: impl Decoder) -> EventStream {
    async_stream::stream! {
        let mut body = response.bytes_stream();
        let mut ready = VecDeque::new();
        let broken = |message: String| Err(GenerateError::Broken { backend: backend.clone(), message: shorten(&message) });
        loop {
            let (decoded, is_end) = match body.next().await {
                Some(Ok(bytes)) => (decoder.push(&bytes, &mut ready), false),
                Some(Err(error)) => (Err(format!("connection lost: {}", root_cause(&error))), false),
                None => (decoder.finish(&mut ready), true),
            };
            for event in ready.drain(..) {
                let is_done = matches!(event, GenerateEvent::Done { .. });
                yield Ok(event);
                if is_done {
                    return;
                }
            }
            if let Err(message) = decoded {
                yield broken(message);
                return;
            }
            if is_end {
                return;
            }
        }
    }
    .boxed()
}

/// Sends a request and sorts what comes back: a response to stream from, or why there is none.
pub(super) async fn send(request: reqwest::RequestBuilder) -> Result<Response, BackendError> {
    let response = request.send().await.map_err(|error| {
        let cause = root_cause(&error);
        if error.is_connect() { BackendError::Connect(cause) } else { BackendError::Failed(cause) }
    })?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after_s = response
        .headers()
        .get(reqwest::header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.trim().parse().ok());
    let message = error_message(response).await;
    Err(match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            BackendError::Busy { status: status.as_u16(), retry_after_s }
        }
        // A refused key is the operator's mistake at this backend, not the client's.
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => BackendError::Failed(format!("status {status}: {message}")),
        status if status.is_client_error() => BackendError::Refused { status: status.as_u16(), message },
        status => BackendError::Failed(format!("status {status}: {message}")),
    })
}

/// A whole body of bounded size. Errors: the connection broke, or the body is too large.
pub(super) async fn body(response: Response) -> Result<Vec<u8>, BackendError> {
    let mut pieces = response.bytes_stream();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece.map_err(|error| BackendError::Failed(root_cause(&error)))?);
        if bytes.len() > limits::LLM_FRAME_BYTES_MAX {
            return Err(BackendError::Failed(format!("a body above {} bytes", limits::LLM_FRAME_BYTES_MAX)));
        }
    }
    Ok(bytes)
}

/// Reads `{"error":"text"}` (Ollama), `{"error":{"message":"text"}}` (OpenAI), or the body as it is.
async fn error_message(response: Response) -> String {
    let mut body = response.bytes_stream();
    let mut bytes = Vec::new();
    while bytes.len() < ERROR_BODY_BYTES_MAX
        && let Some(Ok(piece)) = body.next().await
    {
        bytes.extend_from_slice(&piece);
    }
    bytes.truncate(ERROR_BODY_BYTES_MAX);
    let value: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
    let text = value.as_ref().and_then(|value| value.get("error")).and_then(message_of);
    shorten(text.as_deref().unwrap_or(&String::from_utf8_lossy(&bytes)))
}

/// The text of an `error` value in either protocol's shape.
pub(super) fn message_of(error: &serde_json::Value) -> Option<String> {
    error.as_str().or_else(|| error.get("message")?.as_str()).map(str::to_owned)
}

fn shorten(message: &str) -> String {
    message.trim().chars().take(MESSAGE_CHARS_MAX).collect()
}

/// The innermost reason ("connection refused") instead of the outermost ("error sending request").
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The HTTP client of all backends. Only connecting is bounded here; the pool bounds the rest, token by token.
///
/// Errors: the TLS library cannot start.
pub(super) fn http_client(connect_timeout: Duration) -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder().connect_timeout(connect_timeout).tcp_nodelay(true).no_proxy().build()
}
