//! What the coordinator knows of the cluster and how it talks to nodes.
//!
//! [`view`] follows the metadata group's state; [`client`] (with [`operator`], what operators change) is the trait behind which the
//! wire ends, with [`remote`] over gRPC and [`twin`] in memory; [`stats`] owns what calls have taught about the nodes: ranks
//! ([`load`]), [`health`], latencies and budget ([`hedge`]).

pub mod client;
pub mod health;
pub mod hedge;
pub mod load;
pub mod operator;
pub mod remote;
pub mod stats;
pub mod twin;
pub mod view;
pub mod window;
