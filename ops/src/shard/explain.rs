//! `susui shard explain`: why a shard is as it is.

use cluster_config::cluster_state::{Liveness, NodeLifecycle};
use serde::Serialize;

use super::ShardName;
use crate::cli::Global;
use crate::collection;
use crate::error::Error;
use crate::output::{row, table};
use crate::status::{self, audit_line};
use crate::wire::cluster::{AuditReport, ClusterReport, CopyStatus, NodeReport, ShardReport};

/// How the state of a copy begins that fetches a snapshot; the share of it follows.
const FETCHING: &str = "fetching ";

/// What is said of a shard.
#[derive(Debug, Serialize)]
struct Explanation<'a> {
    #[serde(flatten)]
    shard: &'a ShardReport,
    /// By copy, in the order of `copies`.
    why: Vec<CopyExplanation>,
    /// Data nodes without a copy of the shard.
    other_nodes: Vec<String>,
    /// Forced recoveries of the shard, oldest first.
    audit: Vec<&'a AuditReport>,
}

#[derive(Debug, PartialEq, Serialize)]
struct CopyExplanation {
    copy: u64,
    zone: String,
    /// Entries it has not applied of those the primary knows to be committed; absent without a report of both.
    behind: Option<u64>,
    why: String,
}

/// Runs the verb.
pub(super) async fn run(global: &Global, name: &ShardName) -> Result<(), Error> {
    let client = global.client()?;
    let collection = collection::show(&client, &name.collection).await?.name;
    let report = status::fetch(&client).await?;
    let found = report.shards.iter().find(|shard| shard.collection == collection && shard.index == name.index);
    let shard = found.ok_or_else(|| Error::usage(format!("no shard {name}"), "`susui status` lists the shards"))?;
    let explanation = explain(&report, shard);
    global.output().result(&explanation, || text(name, &explanation));
    Ok(())
}

fn explain<'a>(report: &'a ClusterReport, shard: &'a ShardReport) -> Explanation<'a> {
    let node = |id: u64| report.nodes.iter().find(|node| node.id == id);
    let primary = shard.copies.iter().find(|copy| Some(copy.copy) == shard.primary);
    let committed = primary.and_then(|copy| Some(copy.report.as_ref()?.global_checkpoint));
    let holds_one = |node: &&NodeReport| shard.copies.iter().any(|copy| copy.node == node.id);
    let others: Vec<&NodeReport> = report.nodes.iter().filter(|node| node.is_data && !holds_one(node)).collect();
    let can_move = others.iter().any(|node| node.state() == "alive");
    let why = shard.copies.iter().map(|copy| {
        let behind = committed.zip(copy.report.as_ref()).map(|(committed, own)| committed.saturating_sub(own.applied));
        CopyExplanation {
            copy: copy.copy,
            zone: node(copy.node).map(|node| node.zone.clone()).unwrap_or_default(),
            behind,
            why: why(shard, copy, node(copy.node), behind, can_move),
        }
    });
    Explanation {
        shard,
        why: why.collect(),
        other_nodes: others
            .iter()
            .map(|node| format!("node {} (zone {}, {})", node.id, node.zone, node.state()))
            .collect(),
        audit: report.audit.iter().filter(|record| record.shard == shard.shard).collect(),
    }
}

/// What a copy does, or what it waits for. `can_move`: another node could take a copy of the shard.
fn why(
    shard: &ShardReport,
    copy: &CopyStatus,
    node: Option<&NodeReport>,
    behind: Option<u64>,
    can_move: bool,
) -> String {
    let mut text = match (node.map(|node| node.liveness), &copy.report, copy.role.as_str()) {
        (None, ..) => "its node is unknown".into(),
        (Some(Liveness::Dead), _, "primary") => "its node is dead: no in-sync copy can take over yet".into(),
        (Some(Liveness::Dead), ..) if shard.in_sync == [copy.copy] => {
            "its node is dead, and no other copy holds every acknowledged write: the shard waits for it".into()
        }
        (Some(Liveness::Dead), ..) if can_move => {
            "its node is dead: a new copy is built elsewhere if that lasts".into()
        }
        (Some(Liveness::Dead), ..) => {
            "its node is dead, and no other node could take a copy: the shard waits for it".into()
        }
        (_, None, _) => "its node has not reported it: it is being opened, or cannot be".into(),
        (_, Some(report), _) if report.index_state == "corrupt" => {
            let fate = if shard.in_sync == [copy.copy] { "it is the last in sync and stays" } else { "it is replaced" };
            format!("corrupt, {fate}: {}", report.reason)
        }
        (_, Some(report), _) if report.index_state == "poisoned" => {
            format!("its disk failed, it serves nothing until reopened: {}", report.reason)
        }
        (_, Some(report), _) if report.index_state.starts_with(FETCHING) => {
            let got = report.index_state[FETCHING.len()..].trim();
            format!("fetches a snapshot of the shard from the primary ({got} so far), then the log behind it")
        }
        (_, _, "primary") => "orders the writes".into(),
        (_, _, "in_sync") => "holds every acknowledged write".into(),
        (_, _, "read_replica") => "serves reads, never votes".into(),
        (_, _, "new") => "open, and about to catch up".into(),
        (_, _, "retiring") => "leaves".into(),
        _ => match (shard.primary, behind) {
            (None, _) => "waits for a primary to catch up with".into(),
            (_, Some(0)) => "level with the primary, about to be taken into the in-sync set".into(),
            (_, Some(behind)) => format!("catching up, {behind} entries to go"),
            (_, None) => "catching up".into(),
        },
    };
    if node.is_some_and(|node| node.lifecycle == NodeLifecycle::Draining) {
        text.push_str(if copy.role == "primary" { "; its node drains and hands it over" } else { "; its node drains" });
    }
    text
}

fn text(name: &ShardName, explanation: &Explanation<'_>) -> String {
    let Explanation { shard, why, other_nodes, audit } = explanation;
    let primary = shard.primary.map_or_else(|| "none".into(), |copy| format!("copy {copy}"));
    let writes = if shard.primary.is_none() {
        "refused: no primary"
    } else if (shard.in_sync.len() as u64) < u64::from(shard.min_in_sync) {
        "refused: too few copies are in sync"
    } else {
        "accepted"
    };
    let mut text = format!(
        "shard {name} ({}) is {}\nregister version {}, term {}, lineage {}; primary: {primary}\nwrites {writes} ({} in sync, at least {} \
         needed)\n\n",
        shard.shard,
        shard.health,
        shard.version,
        shard.primary_term,
        shard.lineage,
        shard.in_sync.len(),
        shard.min_in_sync
    );
    let mut rows = vec![row(["COPY", "NODE", "ZONE", "ROLE", "APPLIED", "BEHIND", "WHY"])];
    for (copy, said) in shard.copies.iter().zip(why) {
        let number = |value: Option<u64>| value.map_or_else(|| "-".into(), |value| value.to_string());
        rows.push(vec![
            copy.copy.to_string(),
            copy.node.to_string(),
            said.zone.clone(),
            copy.role.replace('_', "-"),
            number(copy.report.as_ref().map(|report| report.applied)),
            number(said.behind),
            said.why.clone(),
        ]);
    }
    text.push_str(&table(&rows));
    if !other_nodes.is_empty() {
        text.push_str(&format!("\nwithout a copy: {}\n", other_nodes.join(", ")));
    }
    for record in audit {
        text.push_str(&format!("\n{}\n", audit_line(record)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn report(copies: Value, in_sync: Value, primary: Value, draining: bool) -> ClusterReport {
        let node = |id: u64, liveness: &str| {
            json!({"id": id, "rpc_address": "", "http_address": "", "zone": format!("z{id}"), "is_data": true, "incarnation": 1,
                "liveness": liveness, "lifecycle": if draining && id == 1 { "draining" } else { "active" }})
        };
        serde_json::from_value(json!({
            "cluster_id": "c", "state_version": 1,
            "metadata": {"leader": 1, "raft_term": 1, "last_applied_index": 1, "voters": [1]},
            "nodes": [node(1, "alive"), node(2, "alive"), node(3, "dead"), node(4, "alive")],
            "shards": [{"shard": "1/0", "collection": "docs", "index": 0, "version": 3, "lineage": 2, "primary_term": 4,
                "primary": primary, "in_sync": in_sync, "min_in_sync": 1, "health": "yellow", "copies": copies}],
            "audit": [{"number": 1, "at_unix_ms": 0, "by": "ada", "shard": "1/0", "copy": 10, "lineage": 2,
                "former_in_sync": [3], "overrode_live": false}],
        }))
        .expect("the API's shape")
    }

    fn copy(copy: u64, node: u64, role: &str, applied: Option<u64>, index_state: &str) -> Value {
        let report = applied.map(|applied| {
            json!({"last_seqno": applied, "applied": applied, "global_checkpoint": applied, "generation": 0, "index_state": index_state,
                "rows_live": 0, "rows_indexed": 0, "rows_tail": 0, "disk_bytes": 0, "memory_bytes": 0, "reason": "a bad block"})
        });
        json!({"copy": copy, "node": node, "role": role, "report": report})
    }

    #[test]
    fn each_copy_says_what_it_does_or_waits_for() {
        let copies = json!([
            copy(10, 1, "primary", Some(100), "exact"),
            copy(11, 2, "catching_up", Some(60), "exact"),
            copy(12, 3, "catching_up", None, ""),
        ]);
        let report = report(copies, json!([10]), json!(10), true);
        let explanation = explain(&report, &report.shards[0]);
        let said: Vec<&str> = explanation.why.iter().map(|copy| copy.why.as_str()).collect();
        assert_eq!(
            said,
            [
                "orders the writes; its node drains and hands it over",
                "catching up, 40 entries to go",
                "its node is dead: a new copy is built elsewhere if that lasts",
            ]
        );
        assert_eq!(explanation.why[1].behind, Some(40));
        let text = text(&"docs/0".parse().expect("a name"), &explanation);
        for expected in ["lineage 2", "writes accepted", "without a copy: node 4 (zone z4, alive)", "ada"] {
            assert!(text.contains(expected), "no {expected:?} in:\n{text}");
        }
    }

    #[test]
    fn nothing_is_promised_where_no_other_node_could_take_a_copy() {
        let copies = json!([copy(10, 1, "primary", Some(1), "exact"), copy(11, 3, "catching_up", None, "")]);
        let mut report = report(copies, json!([10]), json!(10), false);
        let said = |report: &ClusterReport| explain(report, &report.shards[0]).why[1].why.clone();
        assert!(said(&report).contains("is built elsewhere"), "{}", said(&report));
        report.nodes.retain(|node| matches!(node.id, 1 | 3));
        assert!(said(&report).contains("no other node"), "{}", said(&report));
    }

    #[test]
    fn a_copy_that_fetches_a_snapshot_counts_no_entries() {
        let copies =
            json!(
                [copy(10, 1, "primary", Some(100), "indexed"), copy(11, 2, "catching_up", Some(0), "fetching 40 %"),]
            );
        let report = report(copies, json!([10]), json!(10), false);
        let explanation = explain(&report, &report.shards[0]);
        assert!(explanation.why[1].why.starts_with("fetches a snapshot"), "{explanation:?}");
        assert!(explanation.why[1].why.contains("40 %"), "{explanation:?}");
    }

    #[test]
    fn a_red_shard_says_whom_it_waits_for() {
        let copies = json!([copy(10, 3, "in_sync", None, ""), copy(11, 2, "catching_up", Some(60), "corrupt")]);
        let report = report(copies, json!([10]), Value::Null, false);
        let explanation = explain(&report, &report.shards[0]);
        assert!(explanation.why[0].why.contains("the shard waits for it"), "{explanation:?}");
        assert_eq!(explanation.why[1].why, "corrupt, it is replaced: a bad block");
        assert!(text(&"docs/0".parse().expect("a name"), &explanation).contains("writes refused: no primary"));
    }
}
