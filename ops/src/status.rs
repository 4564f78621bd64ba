//! `susui status`: what the metadata leader knows of nodes and shards.

use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use cluster_config::cluster_state::{Liveness, NodeLifecycle};

use crate::cli::Global;
use crate::client::Client;
use crate::collection;
use crate::error::Error;
use crate::output::{bytes, row, table};
use crate::wire::cluster::{AuditReport, ClusterReport, CopyStatus, NodeReport, ShardReport};

/// Show nodes and shards: primaries, terms, in-sync sets, positions, training and index state
///
/// One line per shard copy. ROLE: `primary` orders writes, `in-sync` holds every acknowledged
/// write, `catching-up` does not yet. APPLIED/END are positions in the shard's log. INDEX:
/// `exact` (below the training floor), `training`, `building`, `indexed gN` (model generation N)
/// or `renewing gN` (the next one is being built); TAIL rows are compared exactly until they are
/// moved into the index. `fetching N %`: the copy fetches a snapshot from the primary;
/// `poisoned`: its disk failed; `corrupt`: its files are damaged or gone. Why stands below.
///
/// Ends with exit code 7 if --check is given and a node is dead, a shard has no primary, or a
/// copy is not in sync, poisoned or corrupt.
///
/// Examples:
///   susui status
///   susui status --collection docs --check
///   susui status --memory
///   susui status --json | jq '.shards[] | {collection, index, in_sync}'
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Arguments {
    /// Only the shards of this collection, or of the one that an alias stands for.
    #[arg(long, short, value_name = "NAME")]
    pub collection: Option<String>,
    /// Fail unless all nodes live and all copies are in sync.
    #[arg(long)]
    pub check: bool,
    /// Show what memory goes to, by process and by copy, instead.
    #[arg(long)]
    pub memory: bool,
}

/// Runs the verb.
pub async fn run(global: &Global, arguments: &Arguments) -> Result<(), Error> {
    let client = global.client()?;
    let only = match &arguments.collection {
        Some(name) => Some(collection::show(&client, name).await?.name),
        None => None,
    };
    let mut report = fetch(&client).await?;
    if let Some(name) = only {
        report.shards.retain(|shard| shard.collection == name);
    }
    global.output().result(&report, || if arguments.memory { memory_text(&report) } else { text(&report) });
    let findings = findings(&report);
    if arguments.check && !findings.is_empty() {
        return Err(Error::CheckFailed(findings.join("; ")));
    }
    Ok(())
}

/// The cluster as its coordinator reports it.
pub async fn fetch(client: &Client) -> Result<ClusterReport, Error> {
    client.get(&["api", "v1", "cluster"]).await
}

/// A forced recovery in one line.
pub(crate) fn audit_line(record: &AuditReport) -> String {
    let at = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(record.at_unix_ms));
    let former: Vec<String> = record.former_in_sync.iter().map(u64::to_string).collect();
    let live = if record.overrode_live { ", one of which lived" } else { "" };
    format!(
        "{at}: {} recovered shard {} from copy {} with data loss (lineage {}); in sync had been {}{live}",
        record.by,
        record.shard,
        record.copy,
        record.lineage,
        former.join(", ")
    )
}

/// Everything that is not as it should be, in words.
fn findings(report: &ClusterReport) -> Vec<String> {
    let dead = report
        .nodes
        .iter()
        .filter(|node| node.liveness == Liveness::Dead)
        .map(|node| format!("node {} is dead", node.id));
    let shards = report.shards.iter().filter(|shard| shard.health != "green").map(|shard| {
        let behind = shard.copies.iter().filter(|copy| matches!(copy.role.as_str(), "new" | "catching_up"));
        let mut reasons: Vec<String> =
            behind.map(|copy| format!("copy {} on node {} is {}", copy.copy, copy.node, words(&copy.role))).collect();
        if shard.primary.is_none() {
            reasons.insert(0, "no primary".into());
        }
        if reasons.is_empty() {
            reasons.push("fewer copies than asked for".into());
        }
        format!("shard {}/{} is {}: {}", shard.collection, shard.index, shard.health, reasons.join(", "))
    });
    let broken = report.shards.iter().flat_map(|shard| {
        let copies = shard.copies.iter().filter_map(|copy| Some((copy, copy.report.as_ref()?)));
        copies.filter(|(_, report)| !report.reason.is_empty()).map(move |(copy, report)| {
            let (name, index) = (&shard.collection, shard.index);
            format!(
                "copy {} of {name}/{index} on node {} is {}: {}",
                copy.copy, copy.node, report.index_state, report.reason
            )
        })
    });
    dead.chain(shards).chain(broken).collect()
}

fn text(report: &ClusterReport) -> String {
    let metadata = &report.metadata;
    let voters: Vec<String> = metadata.voters.iter().map(u64::to_string).collect();
    let leader = metadata.leader.map_or_else(|| "unknown".into(), |leader| format!("node {leader}"));
    let mut text = format!(
        "cluster {}  metadata leader: {leader} (term {}, voters {})  state version {}\n\n",
        report.cluster_id,
        metadata.raft_term,
        voters.join(","),
        report.state_version
    );
    let mut rows = vec![row(["NODE", "STATE", "ZONE", "RPC", "STARTS", "HEARD", "COPIES", "DISK", "MEMORY"])];
    rows.extend(report.nodes.iter().map(node_row));
    text.push_str(&table(&rows));
    if report.shards.is_empty() {
        text.push_str("\nno shards: create a collection with `susui collection create NAME`\n");
        return text;
    }
    let header = [
        "SHARD", "HEALTH", "TERM", "COPY", "NODE", "ROLE", "APPLIED", "END", "INDEX", "INDEXED", "TAIL", "LIVE", "DISK",
    ];
    let mut rows = vec![row(header)];
    for shard in &report.shards {
        rows.extend(shard.copies.iter().map(|copy| copy_row(shard, copy)));
    }
    text.push('\n');
    text.push_str(&table(&rows));
    for finding in findings(report) {
        text.push_str(&format!("\nattention: {finding}"));
    }
    for node in report.nodes.iter().filter(|node| node.lifecycle == NodeLifecycle::Draining) {
        text.push_str(&format!("\nnote: node {0} is draining until `susui node undrain {0}`", node.id));
    }
    for record in &report.audit {
        text.push_str(&format!("\nnote: {}", audit_line(record)));
    }
    text
}

/// The ledger: what the kernel counts, beside what the parts of the process add up to.
fn memory_text(report: &ClusterReport) -> String {
    let header = ["NODE", "ANONYMOUS", "OF BUDGET", "BASE", "CACHES", "COPIES", "ALLOCATOR", "ACCOUNTED", "FILE PAGES"];
    let mut rows = vec![row(header)];
    for node in &report.nodes {
        let Some(memory) = node.memory else {
            rows.push(vec![node.id.to_string(), "no report yet".into()]);
            continue;
        };
        let share = |part: u64, whole: u64| format!("{:.0} %", 100.0 * part as f64 / whole.max(1) as f64);
        rows.push(vec![
            node.id.to_string(),
            bytes(memory.resident_anonymous),
            share(memory.resident_anonymous, memory.budget),
            bytes(memory.base),
            bytes(memory.caches),
            bytes(memory.copies),
            bytes(memory.allocator),
            share(memory.accounted(), memory.resident_anonymous),
            bytes(memory.resident_file),
        ]);
    }
    let mut text = table(&rows);
    let header = ["SHARD", "COPY", "NODE", "CODES", "ROW SETS", "LOG", "RESCORING", "OF IT TAIL", "A ROW", "RECALL@10"];
    let mut rows = vec![row(header)];
    for (shard, copy) in report.shards.iter().flat_map(|shard| shard.copies.iter().map(move |copy| (shard, copy))) {
        let Some(report) = &copy.report else { continue };
        let memory = report.memory;
        let ids = [format!("{}/{}", shard.collection, shard.index), copy.copy.to_string(), copy.node.to_string()];
        let parts = [memory.codes, memory.row_sets, memory.log, memory.rescoring, memory.tail].map(bytes);
        let a_row = bytes(memory.anonymous() / report.rows_live.max(1));
        let recall = report.recall_at_10.map_or_else(|| "-".into(), |recall| format!("{recall:.3}"));
        rows.push(ids.into_iter().chain(parts).chain([a_row, recall]).collect());
    }
    text.push('\n');
    text.push_str(&table(&rows));
    text.push_str(
        "\nrescoring vectors are pages of mapped files, which the operating system gives up when memory is short\n",
    );
    text
}

fn node_row(node: &NodeReport) -> Vec<String> {
    let heard = node.heard_ms_ago.map_or_else(|| "-".into(), |ms| format!("{ms} ms ago"));
    vec![
        node.id.to_string(),
        node.state().into(),
        node.zone.clone(),
        node.rpc_address.clone(),
        node.incarnation.to_string(),
        heard,
        node.copies.to_string(),
        bytes(node.disk_bytes),
        bytes(node.memory_bytes),
    ]
}

fn copy_row(shard: &ShardReport, copy: &CopyStatus) -> Vec<String> {
    let mut cells = vec![
        format!("{}/{}", shard.collection, shard.index),
        shard.health.clone(),
        shard.primary_term.to_string(),
        copy.copy.to_string(),
        copy.node.to_string(),
        words(&copy.role),
    ];
    match &copy.report {
        None => cells.push("no report yet".into()),
        Some(report) => {
            let index = match report.generation {
                0 => report.index_state.clone(),
                generation => format!("{} g{generation}", report.index_state),
            };
            cells.extend([report.applied.to_string(), report.last_seqno.to_string(), index]);
            cells.extend([report.rows_indexed, report.rows_tail, report.rows_live].map(|rows| rows.to_string()));
            cells.push(bytes(report.disk_bytes));
        }
    }
    cells
}

/// A role as people read it.
fn words(role: &str) -> String {
    role.replace('_', "-")
}

#[cfg(test)]
mod tests {
    use cluster_config::memory::{CopyMemory, NodeMemory};
    use serde_json::json;

    use super::*;

    fn report(health: &str, liveness: &str) -> ClusterReport {
        let node = |id: u64, liveness: &str| {
            json!({"id": id, "rpc_address": "127.0.0.1:1", "http_address": "127.0.0.1:2", "zone": "z", "is_data": true,
                "incarnation": 3, "liveness": liveness, "lifecycle": "active", "heard_ms_ago": 12})
        };
        let copy_report = json!({"last_seqno": 8, "applied": 7, "global_checkpoint": 7, "generation": 2, "index_state": "indexed",
            "rows_live": 5, "rows_indexed": 5, "rows_tail": 0, "disk_bytes": 2048, "memory_bytes": 10});
        let second = if health == "green" { "in_sync" } else { "catching_up" };
        serde_json::from_value(json!({
            "cluster_id": "dev", "state_version": 9,
            "metadata": {"leader": 2, "raft_term": 3, "last_applied_index": 4, "voters": [1, 2, 3]},
            "nodes": [node(1, "alive"), node(2, liveness)],
            "shards": [{"collection": "docs", "index": 0, "primary_term": 4, "primary": 10, "in_sync": [10], "min_in_sync": 1,
                "health": health, "copies": [
                    {"copy": 10, "node": 1, "role": "primary", "report": copy_report},
                    {"copy": 11, "node": 2, "role": second, "report": null}]}],
        }))
        .expect("the API's shape")
    }

    #[test]
    fn roles_positions_and_index_state_are_shown() {
        let text = text(&report("yellow", "dead"));
        let line = |word: &str| {
            text.lines().find(|line| line.contains(word)).unwrap_or_else(|| panic!("no {word} in:\n{text}"))
        };
        assert!(line("primary ").contains("indexed g2"));
        assert!(line("no report yet").starts_with("docs/0"));
        assert!(text.contains("attention: node 2 is dead"));
        assert!(text.contains("attention: shard docs/0 is yellow: copy 11 on node 2 is catching-up"), "{text}");
    }

    #[test]
    fn memory_is_shown_by_process_and_by_copy() {
        let mut report = report("green", "alive");
        let (resident_anonymous, budget) = (200 << 20, 800 << 20);
        report.nodes[0].memory =
            Some(NodeMemory { resident_anonymous, budget, base: 100 << 20, caches: 50 << 20, ..NodeMemory::default() });
        let copy = report.shards[0].copies[0].report.as_mut().expect("it reported");
        copy.memory = CopyMemory { codes: 5 << 20, rescoring: 7 << 20, ..CopyMemory::default() };
        copy.recall_at_10 = Some(0.9871);
        let text = memory_text(&report);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("25 %") && lines[1].contains("75 %"), "{text}");
        assert!(lines[2].contains("no report yet"), "{text}");
        let copy = lines.iter().find(|line| line.starts_with("docs/0")).expect("a line");
        assert!(copy.contains("5.0 MiB") && copy.contains("7.0 MiB") && copy.contains("0.987"), "{text}");
    }

    #[test]
    fn a_whole_cluster_has_no_findings() {
        assert!(findings(&report("green", "alive")).is_empty());
    }

    #[test]
    fn a_broken_copy_is_told_of_with_its_reason() {
        let mut report = report("green", "alive");
        let copy = report.shards[0].copies[0].report.as_mut().expect("it reported");
        (copy.index_state, copy.reason) = ("corrupt".into(), "a bad block".into());
        assert_eq!(findings(&report), ["copy 10 of docs/0 on node 1 is corrupt: a bad block"]);
    }
}
