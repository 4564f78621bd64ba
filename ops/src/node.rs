//! `susui node`: the nodes, and what they are for.

use std::time::Duration;

use clap::{Args, Subcommand};
use cluster_config::cluster_state::NodeLifecycle;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::cli::Global;
use crate::client::Client;
use crate::error::Error;
use crate::output::{Output, ProgressLines, bytes, row, table};
use crate::status;
use crate::wire::cluster::{ClusterReport, NodeReport, ShardReport};

/// Between two looks at what a draining node still holds.
const WAIT_POLL: Duration = Duration::from_millis(200);

/// The verbs of `susui node`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the nodes with their state, roles, primaries and copies
    ///
    /// Examples:
    ///   susui node list
    ///   susui node list --json | jq '.[] | select(.state == "draining")'
    #[command(verbatim_doc_comment)]
    List,
    /// Have a node hand its primaries to other nodes, before it is restarted or taken away
    ///
    /// From now on the node hands over one primary after the other (writes to a shard pause for
    /// some milliseconds, nothing fails), is granted none while another copy can be primary, and takes
    /// no new copies. Its copies stay and serve reads. It stays so, over restarts too, until
    /// `susui node undrain`. Nothing is lost by it, so it is done at once; safe to repeat.
    ///
    /// With --wait it returns when no primary is left on the node, and ends with exit code 7 if
    /// that takes longer than --for: a shard without another in-sync copy has nobody to go to.
    ///
    /// A rolling restart, node by node:
    ///   susui node drain 2 --wait && restart-node 2 && susui node undrain 2
    ///
    /// Examples:
    ///   susui node drain 2
    ///   susui node drain 2 --wait --for 5m
    #[command(verbatim_doc_comment)]
    Drain(DrainArguments),
    /// Take a drain back: the node may hold primaries and take new copies again. Safe to repeat
    ///
    /// Primaries do not come back by themselves; they return as other nodes are drained or fail.
    ///
    /// Example:
    ///   susui node undrain 2
    #[command(verbatim_doc_comment)]
    Undrain {
        /// The node.
        #[arg(value_name = "NODE")]
        node: u64,
    },
}

/// Arguments of `susui node drain`.
#[derive(Debug, Args)]
pub struct DrainArguments {
    /// The node.
    #[arg(value_name = "NODE")]
    pub node: u64,
    /// Return when no primary is left on the node.
    #[arg(long)]
    pub wait: bool,
    /// Longest wait.
    #[arg(long = "for", value_name = "DURATION", default_value = "2m", value_parser = humantime::parse_duration)]
    pub patience: Duration,
}

/// Answer of `:drain` and `:undrain`.
#[derive(Debug, Deserialize)]
struct Lifecycle {
    changed: bool,
    primaries: u32,
}

/// What a verb did.
#[derive(Debug, Serialize)]
struct LifecycleReport {
    node: u64,
    lifecycle: NodeLifecycle,
    changed: bool,
    primaries_left: u32,
    waited_ms: u64,
}

/// One line of the list.
#[derive(Debug, Serialize)]
struct ListedNode<'a> {
    #[serde(flatten)]
    node: &'a NodeReport,
    state: &'static str,
    is_voter: bool,
    primaries: usize,
}

/// Runs one verb.
pub async fn run(global: &Global, command: Command) -> Result<(), Error> {
    let (client, output) = (global.client()?, global.output());
    match command {
        Command::List => list(&client, output).await,
        Command::Drain(arguments) => drain(&client, output, &arguments).await,
        Command::Undrain { node } => {
            let Lifecycle { changed, primaries } = set(&client, node, "undrain").await?;
            let lifecycle = NodeLifecycle::Active;
            let report = LifecycleReport { node, lifecycle, changed, primaries_left: primaries, waited_ms: 0 };
            let word = if changed { "is active again" } else { "was active already" };
            output.result(&report, || format!("node {node} {word}"));
            Ok(())
        }
    }
}

async fn set(client: &Client, node: u64, verb: &str) -> Result<Lifecycle, Error> {
    let action = format!("{node}:{verb}");
    client.send(Method::POST, &["api", "v1", "nodes", &action], &serde_json::json!({})).await
}

async fn list(client: &Client, output: Output) -> Result<(), Error> {
    let report = status::fetch(client).await?;
    let nodes: Vec<ListedNode<'_>> = report.nodes.iter().map(|node| listed(&report, node)).collect();
    output.result(&nodes, || list_text(&nodes));
    Ok(())
}

fn listed<'a>(report: &'a ClusterReport, node: &'a NodeReport) -> ListedNode<'a> {
    ListedNode {
        node,
        state: node.state(),
        is_voter: report.metadata.voters.contains(&node.id),
        primaries: primaries_on(report, node.id).count(),
    }
}

/// Shards whose primary is on the node.
fn primaries_on(report: &ClusterReport, node: u64) -> impl Iterator<Item = &ShardReport> {
    report.shards.iter().filter(move |shard| {
        let is_there = |copy: &crate::wire::cluster::CopyStatus| Some(copy.copy) == shard.primary && copy.node == node;
        shard.copies.iter().any(is_there)
    })
}

fn list_text(nodes: &[ListedNode<'_>]) -> String {
    let mut rows = vec![row(["NODE", "STATE", "ROLES", "ZONE", "RPC", "HEARD", "PRIMARIES", "COPIES", "DISK"])];
    for ListedNode { node, state, is_voter, primaries } in nodes {
        let roles = [(*is_voter, "metadata"), (node.is_data, "data")];
        let roles: Vec<&str> = roles.into_iter().filter(|(has, _)| *has).map(|(_, role)| role).collect();
        rows.push(vec![
            node.id.to_string(),
            (*state).into(),
            roles.join("+"),
            node.zone.clone(),
            node.rpc_address.clone(),
            node.heard_ms_ago.map_or_else(|| "-".into(), |ms| format!("{ms} ms ago")),
            primaries.to_string(),
            node.copies.to_string(),
            bytes(node.disk_bytes),
        ]);
    }
    table(&rows)
}

async fn drain(client: &Client, output: Output, arguments: &DrainArguments) -> Result<(), Error> {
    let node = arguments.node;
    let Lifecycle { changed, primaries } = set(client, node, "drain").await?;
    let began = Instant::now();
    let left = if arguments.wait {
        wait_drained(client, output, node, primaries, began + arguments.patience).await?
    } else {
        Vec::new()
    };
    let primaries_left = if arguments.wait { left.len() as u32 } else { primaries };
    let report = LifecycleReport {
        node,
        lifecycle: NodeLifecycle::Draining,
        changed,
        primaries_left,
        waited_ms: began.elapsed().as_millis() as u64,
    };
    output.result(&report, || match primaries_left {
        0 => format!("node {node} is draining and holds no primary"),
        left => format!("node {node} is draining; {left} primaries are still on it"),
    });
    if left.is_empty() {
        return Ok(());
    }
    let patience = humantime::format_duration(arguments.patience);
    Err(Error::CheckFailed(format!("not drained after {patience}: {}", left.join("; "))))
}

/// Waits until no primary is left on the node. Gives those that are when time is up, with the reason.
async fn wait_drained(
    client: &Client,
    output: Output,
    node: u64,
    primaries: u32,
    deadline: Instant,
) -> Result<Vec<String>, Error> {
    let bar = output.progress(primaries.into(), "primaries");
    bar.set_message(format!("drain node {node}"));
    let mut lines = ProgressLines::new(output);
    loop {
        let report = status::fetch(client).await?;
        let left: Vec<String> = primaries_on(&report, node).map(stuck).collect();
        let done = u64::from(primaries).saturating_sub(left.len() as u64);
        bar.set_position(done);
        lines.tick(|| format!("node {node}: {} primaries left", left.len()));
        if left.is_empty() || Instant::now() >= deadline {
            bar.finish_and_clear();
            return Ok(left);
        }
        tokio::time::sleep(WAIT_POLL).await;
    }
}

/// Why a shard's primary is still where it is.
fn stuck(shard: &ShardReport) -> String {
    let name = format!("{}/{}", shard.collection, shard.index);
    if shard.in_sync.len() < 2 {
        return format!("{name} has no other in-sync copy");
    }
    format!("{name} is being handed over")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report() -> ClusterReport {
        let node = |id: u64, is_data: bool, lifecycle: &str| {
            json!({"id": id, "rpc_address": "", "http_address": "", "zone": "z", "is_data": is_data, "incarnation": 1,
                "liveness": "alive", "lifecycle": lifecycle})
        };
        let shard = |index: u32, primary: u64, in_sync: &[u64]| {
            json!({"shard": format!("1/{index}"), "collection": "docs", "index": index, "version": 1, "lineage": 1, "primary_term": 1,
                "primary": primary, "in_sync": in_sync, "min_in_sync": 1, "health": "green",
                "copies": [{"copy": 10 * index + 1, "node": 1, "role": "x"}, {"copy": 10 * index + 2, "node": 2, "role": "x"}]})
        };
        serde_json::from_value(json!({
            "cluster_id": "c", "state_version": 1,
            "metadata": {"leader": 3, "raft_term": 1, "last_applied_index": 1, "voters": [3]},
            "nodes": [node(1, true, "draining"), node(2, true, "active"), node(3, false, "active")],
            "shards": [shard(0, 1, &[1, 2]), shard(1, 12, &[11, 12]), shard(2, 21, &[21])],
        }))
        .expect("the API's shape")
    }

    #[test]
    fn primaries_are_counted_by_node_and_the_stuck_ones_explained() {
        let report = report();
        assert_eq!([1, 2, 3].map(|node| primaries_on(&report, node).count()), [2, 1, 0]);
        let left: Vec<String> = primaries_on(&report, 1).map(stuck).collect();
        assert_eq!(left, ["docs/0 is being handed over", "docs/2 has no other in-sync copy"]);
        let nodes: Vec<ListedNode<'_>> = report.nodes.iter().map(|node| listed(&report, node)).collect();
        let text = list_text(&nodes);
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let line = |id: &str| text.lines().find(|line| line.starts_with(id)).expect("listed").to_owned();
        let cells = |id: &str| line(id).split_whitespace().take(3).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!((cells("1"), cells("3")), (words("1 draining data"), words("3 alive metadata")), "{text}");
    }
}
