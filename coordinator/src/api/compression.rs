//! Compressed answers for who asks (`Accept-Encoding: br, gzip, zstd`): whole JSON and metrics, never a stream of tokens or events.

use axum::http::{Extensions, HeaderMap, StatusCode, Version, header};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{And, Predicate, SizeAbove};

/// Below it the headers outweigh what is saved.
const BYTES_MIN: u64 = 1024;

type IsWhole = fn(StatusCode, Version, &HeaderMap, &Extensions) -> bool;

/// The layer. Fast levels: the search itself takes a few milliseconds, compression must not outlast it.
pub(super) fn layer() -> CompressionLayer<And<SizeAbove, IsWhole>> {
    let is_whole: IsWhole = is_whole;
    CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(SizeAbove::new(BYTES_MIN).and(is_whole))
}

/// Known kinds only: a compressor holds small pieces back, and a stream of a kind added later must not suffer that.
fn is_whole(_: StatusCode, _: Version, headers: &HeaderMap, _: &Extensions) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    matches!(kind.split(';').next().unwrap_or_default().trim(), "application/json" | "text/plain")
}
