//! The wire: generated messages and services, and every conversion between them and the words of `cluster-config`.
//!
//! Conversions live here because neither the node nor the coordinator owns both sides of them. Outward they are total
//! (`From`); inward they are checked (`TryFrom` with a [`convert::WireError`] that names the field).

pub mod convert;

/// Generated from `susui/v1/*.proto`.
#[allow(missing_docs, clippy::all, clippy::allow_attributes_without_reason, unreachable_pub, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("susui.v1");
}
