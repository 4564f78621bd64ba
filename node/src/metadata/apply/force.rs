//! The way out of a shard whose in-sync copies are all lost, at the price of what only they held.
//!
//! Everything else about registers keeps acknowledged writes; this does not, and therefore happens only by an operator's word, under
//! a new lineage, with a record that stays. A copy of the former lineage can neither be primary nor be read by a token again.

use std::collections::{BTreeMap, BTreeSet};

use cluster_config::audit::AuditRecord;
use cluster_config::cluster_state::RetiredCopy;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, Lineage};
use cluster_config::limits;
use cluster_config::shard_group::{CopyPhase, CopyRecord, CopyRole, ShardGroup};

use super::shards::find;
use super::{Outcome, Refusal, cluster_mut};
use crate::metadata::command::{ForcePromote, Response};
use crate::metadata::state::State;

/// Grants the role to the copy under the next term and lineage, alone in sync. All other copies are retired, to be built anew from it.
/// A read replica may be taken (it becomes a voter); a copy in phase `New` may not, because it never held anything.
pub(super) fn promote(state: &mut State, forced: &ForcePromote) -> Result<Outcome, Refusal> {
    let group = find(&state.cluster, forced.shard, forced.expect_version)?;
    let copy = forced.grant.copy;
    let conflict = |message: String| Err(Refusal::new(ErrorKind::Conflict, message));
    let Some(record) = group.copies.get(&copy).copied() else {
        return Err(Refusal::new(ErrorKind::NotFound, format!("shard {} has no copy {copy}", forced.shard)));
    };
    if record.phase == CopyPhase::New {
        return conflict(format!("copy {copy} is new and holds nothing"));
    }
    if !state.cluster.is_alive_in(record.node, forced.grant.incarnation) {
        return conflict(format!("node {} is not alive in incarnation {}", record.node, forced.grant.incarnation));
    }
    let promoted = CopyRecord { node: record.node, role: CopyRole::Voter, phase: CopyPhase::InSync };
    let next = ShardGroup {
        version: group.version + 1,
        primary_term: group.primary_term.next(),
        primary: Some(forced.grant),
        in_sync: BTreeSet::from([copy]),
        copies: BTreeMap::from([(copy, promoted)]),
        lineage: Lineage(group.lineage.0 + 1),
        ..group.clone()
    };
    let audit = AuditRecord {
        at_unix_ms: forced.at_unix_ms,
        by: forced.by.clone(),
        shard: forced.shard,
        copy,
        lineage: next.lineage,
        former_in_sync: group.in_sync,
        last_seen: forced.last_seen.clone(),
        overrode_live: forced.overrode_live,
    };
    let cluster = cluster_mut(state);
    let others = group.copies.iter().filter(|(other, _)| **other != copy);
    let retired =
        |(other, record): (&CopyId, &CopyRecord)| (*other, RetiredCopy { shard: forced.shard, node: record.node });
    cluster.retired.extend(others.map(retired));
    cluster.shards.insert(forced.shard, next.clone());
    let number = cluster.audit.last_key_value().map_or(1, |(last, _)| last + 1);
    cluster.audit.insert(number, audit);
    while cluster.audit.len() > limits::AUDIT_RECORDS_MAX {
        cluster.audit.pop_first();
    }
    Ok(Outcome::changed(Response::Register { accepted: true, reason: String::new(), register: Some(Box::new(next)) }))
}
