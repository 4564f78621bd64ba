//! What the coordinator knows of the cluster and how it talks to nodes.
//!
//! [`view`] follows the metadata group's state; [`client`] (with [`operator`], what operators change) is the trait behind which the
//! wire ends, with [`remote`] over gRPC and [`twin`] in memory; [`health`] remembers which nodes just failed, so that they are asked last.

pub mod client;
pub mod health;
pub mod operator;
pub mod remote;
pub mod twin;
mod twin_operator;
pub mod view;
