//! Errors across the wire: a kind, a message, a hint and, where the caller asked the wrong copy, the current register.
//!
//! The kind travels in the status details, because gRPC's codes are fewer than our kinds. A status without details did not
//! come from our services but from the transport on either side; it is read as what a caller can do about it.

use std::error::Error as _;

use cluster_config::error::ErrorKind;
use cluster_config::limits;
use cluster_config::shard_group::ShardGroup;
use prost::Message;
use tonic::{Code, Status};

use crate::v1;

/// An error as another process told it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RemoteError {
    /// What a caller may do about it.
    pub kind: ErrorKind,
    /// Lower-case, without a final period.
    pub message: String,
    /// What to do; may be empty.
    pub hint: String,
    /// The current register, with `NotPrimary` and `StaleTerm`.
    pub register: Option<Box<ShardGroup>>,
}

impl RemoteError {
    /// An error without a hint.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: String::new(), register: None }
    }

    /// The same with a hint.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The same with the register that the caller should have known.
    pub fn with_register(mut self, register: ShardGroup) -> Self {
        self.register = Some(Box::new(register));
        self
    }

    /// Kept for symmetry with the crates' own errors.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<super::WireError> for RemoteError {
    fn from(error: super::WireError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

impl From<super::WireError> for Status {
    fn from(error: super::WireError) -> Self {
        RemoteError::from(error).into()
    }
}

impl From<RemoteError> for v1::ErrorDetail {
    /// Texts are cut at `limits::ERROR_TEXT_BYTES_MAX`: a status travels in HTTP/2 headers, which are bounded.
    fn from(error: RemoteError) -> Self {
        Self {
            kind: error.kind.as_str().to_owned(),
            message: cut(error.message),
            hint: cut(error.hint),
            register: error.register.map(|register| (*register).into()),
        }
    }
}

impl From<v1::ErrorDetail> for RemoteError {
    /// A kind of a newer sender is `Internal`; a register that cannot be read is left out, as it is only a shortcut.
    fn from(wire: v1::ErrorDetail) -> Self {
        Self {
            kind: ErrorKind::parse(&wire.kind).unwrap_or(ErrorKind::Internal),
            message: wire.message,
            hint: wire.hint,
            register: wire.register.and_then(|register| ShardGroup::try_from(register).ok()).map(Box::new),
        }
    }
}

impl From<RemoteError> for Status {
    fn from(error: RemoteError) -> Self {
        let code = code_of(error.kind);
        let detail = v1::ErrorDetail::from(error);
        let bytes = detail.encode_to_vec();
        Status::with_details(code, detail.message, bytes.into())
    }
}

impl From<Status> for RemoteError {
    fn from(status: Status) -> Self {
        match v1::ErrorDetail::decode(status.details()) {
            Ok(detail) if !detail.kind.is_empty() => {
                // The code still tells what to do where the kind is one we do not know.
                let kind = ErrorKind::parse(&detail.kind).unwrap_or_else(|| kind_without_details(&status));
                Self { kind, ..detail.into() }
            }
            _ => Self::new(kind_without_details(&status), status.message()),
        }
    }
}

/// The one map from kinds to gRPC codes. `proto/tests/roundtrip.rs` holds that it loses nothing once details are read.
pub fn code_of(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidArgument | ErrorKind::UnsupportedMedia => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Conflict | ErrorKind::StaleTerm => Code::Aborted,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::TooLarge => Code::OutOfRange,
        ErrorKind::NotPrimary | ErrorKind::TokenVoid => Code::FailedPrecondition,
        ErrorKind::RateLimited | ErrorKind::Overloaded | ErrorKind::StorageFull => Code::ResourceExhausted,
        ErrorKind::NotEnoughCopies | ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Internal => Code::Internal,
    }
}

/// The kind of a status that none of our services made.
fn kind_without_details(status: &Status) -> ErrorKind {
    let from_transport = status.source().is_some();
    match status.code() {
        // tonic answers an expired `grpc-timeout` with `Cancelled` and this text, on both sides.
        Code::Cancelled if status.message() == tonic::TimeoutExpired(()).to_string() => ErrorKind::DeadlineExceeded,
        // A connection that broke under a call: `Unknown` (broken pipe), `Internal` (reset), `Cancelled` (closed).
        Code::Cancelled | Code::Unknown | Code::Internal if from_transport => ErrorKind::Unavailable,
        Code::Cancelled => ErrorKind::Cancelled,
        Code::InvalidArgument => ErrorKind::InvalidArgument,
        Code::NotFound => ErrorKind::NotFound,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::Aborted | Code::FailedPrecondition => ErrorKind::Conflict,
        Code::Unauthenticated => ErrorKind::Unauthenticated,
        Code::PermissionDenied => ErrorKind::PermissionDenied,
        // tonic's own: a message above the decoding limit.
        Code::OutOfRange => ErrorKind::TooLarge,
        Code::ResourceExhausted => ErrorKind::Overloaded,
        Code::Unavailable => ErrorKind::Unavailable,
        Code::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        Code::DataLoss => ErrorKind::Corrupt,
        Code::Ok | Code::Unknown | Code::Internal | Code::Unimplemented => ErrorKind::Internal,
    }
}

fn cut(mut text: String) -> String {
    let end = text.floor_char_boundary(limits::ERROR_TEXT_BYTES_MAX);
    text.truncate(end);
    text
}
