//! A node that an operator takes out of service for a while: it hands its primaries over, and is given none until that is taken back.

use std::time::Duration;

use reqwest::Method;

use crate::cluster::Cluster;
use crate::wait;

/// An operator repeats the call while no metadata leader can be reached.
const PATIENCE: Duration = Duration::from_secs(30);

/// Drains.
pub async fn inject(cluster: &Cluster, node: usize) -> anyhow::Result<()> {
    order(cluster, node, "drain").await
}

/// Takes it back.
pub async fn heal(cluster: &Cluster, node: usize) -> anyhow::Result<()> {
    order(cluster, node, "undrain").await
}

async fn order(cluster: &Cluster, node: usize, verb: &str) -> anyhow::Result<()> {
    let (client, path) = (cluster.client(), format!("/api/v1/nodes/{node}:{verb}"));
    let what = format!("node {node} to take {verb}");
    wait::until(&what, PATIENCE, || async { client.send(Method::POST, &path, None).await?.ok() }).await.map(drop)
}
