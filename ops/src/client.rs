//! The one HTTP client of all commands: addresses, error bodies, retries.
//!
//! A call is repeated only where repeating is safe: the caller says so by choosing a method whose request is idempotent (reads,
//! `PUT` by id, `POST` with an `Idempotency-Key`). Retries are bounded in number and in time, and follow `Retry-After`. What took all the
//! time it was given is not repeated: whoever waits has said how long, and a question would be answered, and paid for, again.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::error::Error;

/// Attempts of one call, the first included. With the waits below about 7 s, if each is refused at once.
const ATTEMPTS_MAX: u32 = 8;
/// No attempt begins later than this after the first one, however long each took. Longer than a failover (7 s).
const REPEAT_FOR: Duration = Duration::from_secs(8);
/// First wait between attempts; doubled each time up to [`WAIT_MAX`].
const WAIT_FIRST: Duration = Duration::from_millis(100);
/// Longest wait between attempts, whatever `Retry-After` asks.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Time to establish a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Kind of a call whose time was up, here or at the coordinator.
pub(crate) const DEADLINE_EXCEEDED: &str = "deadline_exceeded";
/// Status of it, also of a proxy in between.
const GATEWAY_TIMEOUT: u16 = 504;
/// Most bytes of an error body that are kept for the message when it is not our JSON.
const FOREIGN_BODY_MAX: usize = 300;

/// An error as the HTTP API spells it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ApiError {
    /// HTTP status.
    #[serde(skip)]
    pub status: u16,
    /// Kind, as `invalid_argument`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    #[serde(default)]
    pub hint: String,
    /// Whether the same request may succeed later.
    #[serde(default)]
    pub retryable: bool,
    /// For finding the request in the logs.
    #[serde(default)]
    pub request_id: Option<String>,
}

/// The body of every error, over HTTP and in streams.
#[derive(Clone, Debug, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ApiError,
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}", self.message, self.kind)?;
        if self.status != 0 {
            write!(f, ", HTTP {}", self.status)?;
        }
        if let Some(id) = &self.request_id {
            write!(f, ", request {id}")?;
        }
        f.write_str(")")
    }
}

/// Speaks to one coordinator.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    /// For answers that come in pieces: the timeout bounds each wait, not the whole.
    streams: reqwest::Client,
    base: String,
}

impl Client {
    /// A client of the coordinator at `url`, as `http://127.0.0.1:8000`. `timeout` bounds each attempt of a call, and in a
    /// stream the wait for the next piece. `key` opens coordinators that require one. Errors: the address is not an HTTP URL, or the key no header.
    pub fn new(url: &str, timeout: Duration, key: Option<&str>) -> Result<Self, Error> {
        let usage = |problem: String| Error::usage(problem, "give it as http://HOST:PORT");
        let parsed = reqwest::Url::parse(url).map_err(|error| usage(format!("--url {url:?} is not a URL: {error}")))?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.host().is_none() {
            return Err(usage(format!("--url {url:?} is not an HTTP address")));
        }
        let headers = key_header(key)?;
        let common = || {
            reqwest::Client::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .user_agent(concat!("susui/", env!("CARGO_PKG_VERSION")))
                .default_headers(headers.clone())
                // Clusters are reached directly; a proxy of the environment is for the outside world.
                .no_proxy()
        };
        let failed = |error: reqwest::Error| Error::local(format!("cannot set up HTTP: {error}"), "");
        let http = common().timeout(timeout).build().map_err(failed)?;
        let streams = common().read_timeout(timeout).build().map_err(failed)?;
        Ok(Self { http, streams, base: url.trim_end_matches('/').to_owned() })
    }

    /// A path below the coordinator's root, each segment escaped: `["api", "v1", "jobs", id]`.
    pub fn path(&self, segments: &[&str]) -> String {
        let mut url = reqwest::Url::parse(&self.base).expect("new() parsed it");
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url.to_string()
    }

    /// `GET`, repeated while the cluster is busy.
    pub async fn get<T: DeserializeOwned>(&self, segments: &[&str]) -> Result<T, Error> {
        self.read_json(|| self.http.get(self.path(segments))).await
    }

    /// `GET` with parameters, repeated while the cluster is busy. Empty values are left out.
    pub async fn get_query<T: DeserializeOwned>(&self, segments: &[&str], query: &[(&str, &str)]) -> Result<T, Error> {
        let mut url = reqwest::Url::parse(&self.path(segments)).expect("made of a parsed one");
        url.query_pairs_mut().extend_pairs(query.iter().filter(|(_, value)| !value.is_empty()));
        self.read_json(|| self.http.get(url.clone())).await
    }

    /// Sends JSON with an idempotent method, or one made so by the server's semantics; repeated while the cluster is busy.
    pub async fn send<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        segments: &[&str],
        body: &B,
    ) -> Result<T, Error> {
        let body = encode(body)?;
        self.read_json(|| with_json(self.http.request(method.clone(), self.path(segments)), body.clone())).await
    }

    /// `DELETE`, repeated while the cluster is busy.
    pub async fn delete<T: DeserializeOwned>(&self, segments: &[&str]) -> Result<T, Error> {
        self.read_json(|| self.http.delete(self.path(segments))).await
    }

    /// `POST` of a form under an idempotency key, so that it may be repeated. `form` makes a fresh form for each attempt.
    pub async fn post_form<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        idempotency_key: &str,
        form: impl Fn() -> reqwest::multipart::Form,
    ) -> Result<T, Error> {
        self.read_json(|| {
            self.http.post(self.path(segments)).header("idempotency-key", idempotency_key).multipart(form())
        })
        .await
    }

    /// `POST` of JSON under an idempotency key, so that it may be repeated.
    pub async fn post_idempotent<B: Serialize, T: DeserializeOwned>(
        &self,
        segments: &[&str],
        idempotency_key: &str,
        body: &B,
    ) -> Result<T, Error> {
        let body = encode(body)?;
        self.read_json(|| {
            with_json(self.http.post(self.path(segments)), body.clone()).header("idempotency-key", idempotency_key)
        })
        .await
    }

    /// `POST` of JSON once, for measuring: neither repeated nor delayed.
    pub async fn post_once<B: Serialize, T: DeserializeOwned>(&self, segments: &[&str], body: &B) -> Result<T, Error> {
        let response = self
            .attempt(with_json(self.http.post(self.path(segments)), encode(body)?))
            .await
            .map_err(|failed| failed.error)?;
        self.decode(response).await
    }

    /// `POST` of JSON whose answer is a stream of events; not repeated. It may take as long as it likes while pieces of it come.
    pub async fn post_stream<B: Serialize>(&self, segments: &[&str], body: &B) -> Result<Response, Error> {
        let request = with_json(self.streams.post(self.path(segments)), encode(body)?);
        self.attempt(request.header("accept", "text/event-stream")).await.map_err(|failed| failed.error)
    }

    /// `GET` of any address, for readiness: status and text, without retries.
    pub async fn probe(&self, url: &str) -> Result<(u16, String), Error> {
        let response = self.http.get(url).send().await.map_err(|error| self.transport_error(&error))?;
        let status = response.status().as_u16();
        let text = response.text().await.map_err(|error| self.transport_error(&error))?;
        Ok((status, text))
    }

    async fn read_json<T: DeserializeOwned>(&self, request: impl Fn() -> RequestBuilder) -> Result<T, Error> {
        let begun = Instant::now();
        let mut attempt = 1;
        loop {
            let failed = match self.attempt(request()).await {
                Ok(response) => return self.decode(response).await,
                Err(failed) => failed,
            };
            match failed.decide_pause(attempt, begun.elapsed()) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(failed.error),
            }
            attempt += 1;
        }
    }

    async fn attempt(&self, request: RequestBuilder) -> Result<Response, FailedAttempt> {
        let response = request.send().await.map_err(|error| FailedAttempt::of(self.transport_error(&error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let retry_after = retry_after(response.headers());
        let status = response.status().as_u16();
        let text = response.text().await.unwrap_or_default();
        Err(FailedAttempt { error: Error::Api(parse_error(status, &text)), retry_after })
    }

    async fn decode<T: DeserializeOwned>(&self, response: Response) -> Result<T, Error> {
        let url = response.url().path().to_owned();
        let bytes = response.bytes().await.map_err(|error| self.transport_error(&error))?;
        let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(bytes).map_err(|error| {
            Error::local(
                format!("the answer of {url} is not as expected: {error}"),
                "is the coordinator of the same version as this susui?",
            )
        })
    }

    /// What becomes of a request without a whole answer.
    pub(crate) fn transport_error(&self, error: &reqwest::Error) -> Error {
        if error.is_timeout() && !error.is_connect() {
            return Error::Api(ApiError {
                status: 0,
                kind: DEADLINE_EXCEEDED.into(),
                message: "no answer in time".into(),
                hint: "raise --timeout, or look at `susui status`; the outcome of a write is unknown".into(),
                retryable: true,
                request_id: None,
            });
        }
        Error::Unreachable { url: self.base.clone(), detail: innermost(error) }
    }
}

struct FailedAttempt {
    error: Error,
    retry_after: Option<Duration>,
}

impl FailedAttempt {
    fn of(error: Error) -> Self {
        Self { error, retry_after: None }
    }

    /// The pause before the next attempt; `None` where there is none. `attempt` counts from 1, `elapsed` from the first one.
    fn decide_pause(&self, attempt: u32, elapsed: Duration) -> Option<Duration> {
        let pause = self.retry_after.unwrap_or(WAIT_FIRST * 2_u32.pow(attempt - 1)).min(WAIT_MAX);
        let is_early = attempt < ATTEMPTS_MAX && elapsed + pause < REPEAT_FOR;
        (is_early && self.may_repeat()).then_some(pause)
    }

    /// A coordinator that is not there is reported at once: a person waits for the answer.
    fn may_repeat(&self) -> bool {
        let Error::Api(error) = &self.error else { return false };
        error.retryable && error.kind != DEADLINE_EXCEEDED && error.status != GATEWAY_TIMEOUT
    }
}

fn key_header(key: Option<&str>) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    if let Some(key) = key {
        let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| {
            Error::usage("the API key has characters that no key has", "set SUSUI_API_KEY to a key as it was printed")
        })?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

fn encode<B: Serialize>(body: &B) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(body).map_err(|error| Error::local(format!("cannot encode the request: {error}"), ""))
}

fn with_json(request: RequestBuilder, body: Vec<u8>) -> RequestBuilder {
    request.header("content-type", "application/json").body(body)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// The API's error body, or an account of whatever else answered.
fn parse_error(status: u16, text: &str) -> ApiError {
    match serde_json::from_str::<ErrorBody>(text) {
        Ok(body) => ApiError { status, ..body.error },
        Err(_) => ApiError {
            status,
            kind: "foreign_answer".into(),
            message: format!("unexpected answer: {}", text.chars().take(FOREIGN_BODY_MAX).collect::<String>().trim()),
            hint: "is --url the address of a Susui coordinator?".into(),
            retryable: matches!(status, 429 | 502 | 503 | GATEWAY_TIMEOUT),
            request_id: None,
        },
    }
}

/// The last cause: "connection refused" rather than "error sending request".
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bodies_of_ours_and_of_others() {
        let ours = r#"{"error":{"type":"not_found","message":"no collection x","hint":"create it","retryable":false,"request_id":"r1"}}"#;
        let error = parse_error(404, ours);
        assert_eq!((error.kind.as_str(), error.status, error.retryable), ("not_found", 404, false));
        assert_eq!(error.to_string(), "no collection x (not_found, HTTP 404, request r1)");

        let theirs = parse_error(502, "<html>bad gateway</html>");
        assert!(theirs.retryable && theirs.message.contains("bad gateway"));
        assert!(!parse_error(404, "nope").retryable);
    }

    #[test]
    fn only_what_may_soon_succeed_is_repeated_and_not_for_ever() {
        let failed = |status: u16, kind: &str, retry_after: Option<u64>| {
            let body = format!(r#"{{"error":{{"type":"{kind}","message":"","retryable":{}}}}}"#, status >= 429);
            let error = Error::Api(parse_error(status, &body));
            FailedAttempt { error, retry_after: retry_after.map(Duration::from_secs) }
        };
        let busy = failed(503, "unavailable", None);
        let (mut elapsed, mut pauses) = (Duration::ZERO, Vec::new());
        while let Some(pause) = busy.decide_pause(pauses.len() as u32 + 1, elapsed) {
            elapsed += pause;
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000, 2000]);

        let seconds = Duration::from_secs;
        assert_eq!(failed(429, "rate_limited", Some(1)).decide_pause(1, seconds(0)), Some(seconds(1)));
        assert_eq!(failed(429, "rate_limited", Some(60)).decide_pause(1, seconds(0)), Some(WAIT_MAX));
        assert_eq!(busy.decide_pause(2, seconds(10)), None, "each attempt may take long, all together not");
        for (status, kind) in [(400, "invalid_argument"), (504, "deadline_exceeded"), (504, "html of a proxy")] {
            assert_eq!(failed(status, kind, Some(0)).decide_pause(1, seconds(0)), None, "{kind}");
        }
    }

    #[test]
    fn paths_escape_what_callers_chose() {
        let client = Client::new("http://127.0.0.1:8000/", Duration::from_secs(1), None).expect("a URL");
        assert_eq!(
            client.path(&["api", "v1", "documents", "a/b c#1"]),
            "http://127.0.0.1:8000/api/v1/documents/a%2Fb%20c%231"
        );
        assert!(matches!(Client::new("127.0.0.1:8000", Duration::ZERO, None), Err(Error::Usage { .. })));
    }
}
