//! `susui status`: what the metadata leader knows of nodes and shards.

use clap::Args;
use cluster_config::cluster_state::{Liveness, NodeLifecycle};
use cluster_config::shard_group::{CopyPhase, CopyRole};

use crate::cli::Global;
use crate::error::Error;
use crate::output::{bytes, row, table};
use crate::wire::{ClusterReport, CopyReport, NodeReport, ShardReport};

/// Show nodes and shards: primaries, terms, in-sync sets, positions, training and index state.
///
/// One line per shard copy. ROLE: `primary` orders writes, `in-sync` holds every acknowledged write, `catching-up` does not
/// yet. APPLIED/END are positions in the shard's log. INDEX: `exact` (below the training floor), `training`, `building`,
/// or `indexed gN` (model generation N); TAIL rows are compared exactly until they are moved into the index.
///
/// Ends with exit code 7 if --check is given and a node is dead, a shard has no primary, or a copy is not in sync.
///
/// Examples:
///   susui status
///   susui status --collection docs --check
///   susui status --json | jq '.shards[] | {collection, index, in_sync}'
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Arguments {
    /// Only the shards of this collection.
    #[arg(long, short, value_name = "NAME")]
    pub collection: Option<String>,
    /// Fail unless all nodes live and all copies are in sync.
    #[arg(long)]
    pub check: bool,
}

/// Runs the verb.
pub async fn run(global: &Global, arguments: &Arguments) -> Result<(), Error> {
    let mut report = fetch(&global.client()?).await?;
    if let Some(name) = &arguments.collection {
        report.shards.retain(|shard| shard.collection == *name);
        if report.shards.is_empty() {
            return Err(Error::usage(format!("no collection {name}"), "`susui collection list` names them"));
        }
    }
    global.output().result(&report, || text(&report));
    let findings = findings(&report);
    if arguments.check && !findings.is_empty() {
        return Err(Error::CheckFailed(findings.join("; ")));
    }
    Ok(())
}

/// The cluster as its coordinator reports it.
pub async fn fetch(client: &crate::client::Client) -> Result<ClusterReport, Error> {
    client.get(&["api", "v1", "cluster"]).await
}

/// Everything that is not as it should be, in words.
fn findings(report: &ClusterReport) -> Vec<String> {
    let dead = report
        .nodes
        .iter()
        .filter(|node| node.liveness == Liveness::Dead)
        .map(|node| format!("node {} is dead", node.id));
    let shards = report.shards.iter().flat_map(|shard| {
        let name = format!("shard {}/{}", shard.collection, shard.index);
        let headless = shard.primary.is_none().then(|| format!("{name} has no primary"));
        let behind = shard
            .copies
            .iter()
            .filter(|copy| copy.phase != CopyPhase::Retiring && !is_in_sync(shard, copy))
            .map(|copy| format!("{name}: copy {} on node {} is {}", copy.copy_id, copy.node, phase_word(copy.phase)))
            .collect::<Vec<_>>();
        headless.into_iter().chain(behind)
    });
    dead.chain(shards).collect()
}

fn is_in_sync(shard: &ShardReport, copy: &CopyReport) -> bool {
    match copy.role {
        CopyRole::Voter => shard.in_sync.contains(&copy.copy_id),
        CopyRole::ReadReplica => copy.phase == CopyPhase::InSync,
    }
}

fn text(report: &ClusterReport) -> String {
    let voters: Vec<String> = report.raft.voters.iter().map(u64::to_string).collect();
    let leader = if report.raft.leader == 0 { "unknown".into() } else { format!("node {}", report.raft.leader) };
    let mut text = format!(
        "cluster {}  metadata leader: {leader} (term {}, voters {})  state version {}\n\n",
        report.cluster_id,
        report.raft.raft_term,
        voters.join(","),
        report.version
    );
    let mut rows = vec![row(["NODE", "STATE", "ZONE", "RPC", "STARTS", "HEARD"])];
    rows.extend(report.nodes.iter().map(node_row));
    text.push_str(&table(&rows));
    if report.shards.is_empty() {
        text.push_str("\nno shards: create a collection with `susui collection create NAME`\n");
        return text;
    }
    let mut rows = vec![row([
        "SHARD", "TERM", "COPY", "NODE", "ROLE", "APPLIED", "END", "INDEX", "INDEXED", "TAIL", "LIVE", "DISK",
    ])];
    for shard in &report.shards {
        rows.extend(shard.copies.iter().map(|copy| copy_row(shard, copy)));
    }
    text.push('\n');
    text.push_str(&table(&rows));
    for finding in findings(report) {
        text.push_str(&format!("\nattention: {finding}"));
    }
    text
}

fn node_row(node: &NodeReport) -> Vec<String> {
    let state = match (node.liveness, node.lifecycle) {
        (Liveness::Dead, _) => "dead",
        (Liveness::Alive, NodeLifecycle::Draining) => "draining",
        (Liveness::Alive, NodeLifecycle::Active) => "alive",
    };
    let heard = node.heard_ms_ago.map_or_else(|| "-".into(), |ms| format!("{ms} ms ago"));
    vec![
        node.id.to_string(),
        state.into(),
        node.zone.clone(),
        node.rpc_address.clone(),
        node.incarnation.to_string(),
        heard,
    ]
}

fn copy_row(shard: &ShardReport, copy: &CopyReport) -> Vec<String> {
    let number = |value: Option<u64>| value.map_or_else(|| "-".into(), |value| value.to_string());
    let role = match copy.role {
        _ if shard.primary == Some(copy.copy_id) => "primary".to_owned(),
        CopyRole::ReadReplica => format!("read-replica {}", phase_word(copy.phase)),
        CopyRole::Voter if is_in_sync(shard, copy) => "in-sync".to_owned(),
        CopyRole::Voter if copy.phase == CopyPhase::InSync => "out-of-sync".to_owned(),
        CopyRole::Voter => phase_word(copy.phase).to_owned(),
    };
    let index = match (copy.index_state.as_deref(), copy.generation) {
        (Some("indexed"), Some(generation)) => format!("indexed g{generation}"),
        (Some(state), _) => state.to_owned(),
        (None, _) => "-".to_owned(),
    };
    vec![
        format!("{}/{}", shard.collection, shard.index),
        shard.primary_term.to_string(),
        copy.copy_id.to_string(),
        copy.node.to_string(),
        role,
        number(copy.applied),
        number(copy.last_seqno),
        index,
        number(copy.rows_indexed),
        number(copy.rows_tail),
        number(copy.rows_live),
        copy.disk_bytes.map_or_else(|| "-".into(), bytes),
    ]
}

fn phase_word(phase: CopyPhase) -> &'static str {
    match phase {
        CopyPhase::New => "new",
        CopyPhase::CatchingUp => "catching-up",
        CopyPhase::InSync => "in-sync",
        CopyPhase::Retiring => "retiring",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(in_sync: &[u64], liveness: &str) -> ClusterReport {
        serde_json::from_value(json!({
            "cluster_id": "dev", "version": 9,
            "raft": {"leader": 2, "raft_term": 3, "voters": [1, 2, 3]},
            "nodes": [{"id": 1, "liveness": "alive", "lifecycle": "active", "heard_ms_ago": 12},
                      {"id": 2, "liveness": liveness, "lifecycle": "active"}],
            "shards": [{"collection": "docs", "index": 0, "primary_term": 4, "primary": 10, "in_sync": in_sync, "min_in_sync": 1,
                "copies": [
                    {"copy_id": 10, "node": 1, "role": "voter", "phase": "in_sync", "applied": 7, "last_seqno": 8,
                     "index_state": "indexed", "generation": 2, "rows_indexed": 5, "rows_tail": 0, "rows_live": 5},
                    {"copy_id": 11, "node": 2, "role": "voter", "phase": if in_sync.len() > 1 { "in_sync" } else { "catching_up" }}]}],
        }))
        .expect("the documented shape")
    }

    #[test]
    fn roles_positions_and_index_state_are_shown() {
        let text = text(&report(&[10], "dead"));
        let line = |word: &str| {
            text.lines().find(|line| line.contains(word)).unwrap_or_else(|| panic!("no {word} in:\n{text}"))
        };
        assert!(line("primary ").contains("indexed g2"));
        assert!(line("catching-up ").starts_with("docs/0"));
        assert!(text.contains("attention: node 2 is dead"));
        assert!(text.contains("attention: shard docs/0: copy 11 on node 2 is catching-up"));
    }

    #[test]
    fn a_whole_cluster_has_no_findings() {
        assert!(findings(&report(&[10, 11], "alive")).is_empty());
    }
}
