//! Deadlines on the wire: remaining time in `grpc-timeout`, never a wall clock.

use std::time::{Duration, Instant};

use cluster_config::limits;
use tonic::Request;
use tonic::metadata::MetadataMap;

/// When the caller stops waiting.
pub fn deadline_of<T>(request: &Request<T>) -> Instant {
    Instant::now() + remaining(request.metadata())
}

/// How long the caller waits: its `grpc-timeout`, at most [`limits::TIMEOUT_MS_MAX`], and the default where it sent none.
pub fn remaining(metadata: &MetadataMap) -> Duration {
    let header = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
    let remaining = header.and_then(parse_timeout).unwrap_or(Duration::from_millis(limits::TIMEOUT_MS_DEFAULT));
    remaining.min(Duration::from_millis(limits::TIMEOUT_MS_MAX))
}

/// A request that tells its receiver how much time is left.
pub fn with_timeout<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

/// Source: gRPC over HTTP/2, "Timeout": up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_by_unit_and_bounded() {
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("", None),
            ("S", None),
            ("123456789S", None),
            ("1x", None),
            ("1\u{fc}", None),
            ("-1S", None),
            ("\u{20ac}", None),
        ] {
            assert_eq!(parse_timeout(text), expected, "{text}");
        }
        let bounded = deadline_of(&with_timeout((), Duration::from_secs(9_999)));
        assert!(bounded <= Instant::now() + Duration::from_millis(limits::TIMEOUT_MS_MAX));
    }
}
