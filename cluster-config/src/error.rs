//! The closed set of error kinds that every crate maps to, and the errors of this crate.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong, as a caller may act on it. One map to gRPC (`proto::convert::status`), one to HTTP (`coordinator::api::error`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request is malformed or out of range; it will never succeed as it is.
    InvalidArgument,
    /// The named thing does not exist.
    NotFound,
    /// The named thing exists with other contents.
    AlreadyExists,
    /// A compare-and-set lost, or the state does not allow the call now.
    Conflict,
    /// No or bad credentials.
    Unauthenticated,
    /// Good credentials without the right.
    PermissionDenied,
    /// Body, batch or result above its limit.
    TooLarge,
    /// The media type is not one we parse.
    UnsupportedMedia,
    /// The caller's own rate is exhausted.
    RateLimited,
    /// The copy addressed is not the primary; refresh the cluster state and try the one that is.
    NotPrimary,
    /// The sender's primary term has been superseded.
    StaleTerm,
    /// Fewer in-sync copies than `min_in_sync`: writes are refused, reads go on.
    NotEnoughCopies,
    /// A session token of another lineage.
    TokenVoid,
    /// A queue or pool is full.
    Overloaded,
    /// The disk is full.
    StorageFull,
    /// Not serving now: starting, recovering, unreachable.
    Unavailable,
    /// The deadline passed; the outcome of a write is unknown.
    DeadlineExceeded,
    /// The caller went away.
    Cancelled,
    /// Stored bytes fail their check.
    Corrupt,
    /// A bug, or a failure with no better name.
    Internal,
}

impl ErrorKind {
    /// Every kind, for tables and tests.
    pub const ALL: [ErrorKind; 20] = [
        ErrorKind::InvalidArgument,
        ErrorKind::NotFound,
        ErrorKind::AlreadyExists,
        ErrorKind::Conflict,
        ErrorKind::Unauthenticated,
        ErrorKind::PermissionDenied,
        ErrorKind::TooLarge,
        ErrorKind::UnsupportedMedia,
        ErrorKind::RateLimited,
        ErrorKind::NotPrimary,
        ErrorKind::StaleTerm,
        ErrorKind::NotEnoughCopies,
        ErrorKind::TokenVoid,
        ErrorKind::Overloaded,
        ErrorKind::StorageFull,
        ErrorKind::Unavailable,
        ErrorKind::DeadlineExceeded,
        ErrorKind::Cancelled,
        ErrorKind::Corrupt,
        ErrorKind::Internal,
    ];

    /// Whether the same call may succeed later or elsewhere.
    pub fn is_retryable(self) -> bool {
        use ErrorKind::*;
        matches!(
            self,
            RateLimited
                | NotPrimary
                | StaleTerm
                | NotEnoughCopies
                | Overloaded
                | StorageFull
                | Unavailable
                | DeadlineExceeded
        )
    }

    /// Whether every copy would give the same answer, so that asking another one is pointless.
    pub fn is_deterministic(self) -> bool {
        use ErrorKind::*;
        matches!(
            self,
            InvalidArgument
                | NotFound
                | AlreadyExists
                | Unauthenticated
                | PermissionDenied
                | TooLarge
                | UnsupportedMedia
                | TokenVoid
        )
    }

    /// The snake_case word used on the wire and in HTTP bodies.
    pub fn as_str(self) -> &'static str {
        use ErrorKind::*;
        match self {
            InvalidArgument => "invalid_argument",
            NotFound => "not_found",
            AlreadyExists => "already_exists",
            Conflict => "conflict",
            Unauthenticated => "unauthenticated",
            PermissionDenied => "permission_denied",
            TooLarge => "too_large",
            UnsupportedMedia => "unsupported_media",
            RateLimited => "rate_limited",
            NotPrimary => "not_primary",
            StaleTerm => "stale_term",
            NotEnoughCopies => "not_enough_copies",
            TokenVoid => "token_void",
            Overloaded => "overloaded",
            StorageFull => "storage_full",
            Unavailable => "unavailable",
            DeadlineExceeded => "deadline_exceeded",
            Cancelled => "cancelled",
            Corrupt => "corrupt",
            Internal => "internal",
        }
    }

    /// The inverse of [`ErrorKind::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that breaks its rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} {value:?}: expected {expected}")]
pub struct InvalidName {
    what: &'static str,
    value: String,
    expected: String,
}

impl InvalidName {
    pub(crate) fn new(what: &'static str, value: &str, expected: impl Into<String>) -> Self {
        Self { what, value: value.chars().take(80).collect(), expected: expected.into() }
    }
}

/// A field that breaks its rule: the dotted path to it, what is wrong, and what to do.
///
/// Used for configuration files (`metadata.peers[1].addr`) and for request bodies (`index.nlist`) alike.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}; {hint}")]
pub struct ConfigError {
    /// Dotted path of the key.
    pub key: String,
    /// What is wrong with its value.
    pub problem: String,
    /// What to do.
    pub hint: String,
}

impl ConfigError {
    /// A finding about `key`.
    pub fn new(key: impl Into<String>, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into(), hint: hint.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_reads_what_it_prints() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::parse(kind.as_str()), Some(kind));
            assert!(
                !(kind.is_retryable() && kind.is_deterministic()),
                "{kind}: a deterministic refusal is not retryable"
            );
        }
    }
}
