//! Conditional requests: what a browser or proxy may keep, and when "not modified" says it all.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Results are the caller's alone and may be outdated by the next write: kept by nobody in between, used again only after asking.
pub(super) const PRIVATE: HeaderValue = HeaderValue::from_static("private, no-cache");
/// What changes only with the binary.
pub(super) const STATIC: HeaderValue = HeaderValue::from_static("public, max-age=3600");

/// Whether `If-None-Match` names this tag, compared weakly as RFC 9110 has it for this field.
pub(super) fn has_current(request: &HeaderMap, etag: &str) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let current = opaque(etag);
    request
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .any(|tag| tag.trim() == "*" || opaque(tag) == current)
}

/// Nothing but the headers that the full answer would have had.
pub(super) fn not_modified() -> Response {
    StatusCode::NOT_MODIFIED.into_response()
}

/// Adds validator and rule of keeping.
pub(super) fn tagged(mut response: Response, etag: Option<String>, cache_control: HeaderValue) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, cache_control);
    if let Some(etag) = etag.and_then(|etag| HeaderValue::from_str(&etag).ok()) {
        headers.insert(header::ETAG, etag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(sent: &[&'static str], etag: &str) -> bool {
        let mut headers = HeaderMap::new();
        for value in sent {
            headers.append(header::IF_NONE_MATCH, HeaderValue::from_static(value));
        }
        has_current(&headers, etag)
    }

    #[test]
    fn tags_are_compared_weakly_in_any_list() {
        assert!(has(&["W/\"a\""], "W/\"a\"") && has(&["\"a\""], "W/\"a\"") && has(&["W/\"a\""], "\"a\""));
        assert!(
            has(&["\"x\", W/\"a\" ,\"y\""], "W/\"a\"") && has(&["\"x\"", "\"a\""], "\"a\"") && has(&["*"], "\"a\"")
        );
        assert!(!has(&[], "\"a\"") && !has(&["\"b\""], "\"a\"") && !has(&["a"], "\"a\"") && !has(&[""], "\"a\""));
    }
}
