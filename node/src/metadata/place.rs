//! Where the copies of a new collection go: spread over zones, then by load.

use std::collections::{BTreeMap, BTreeSet};

use cluster_config::cluster_state::ClusterState;
use cluster_config::collection::CollectionSpec;
use cluster_config::error::ErrorKind;
use cluster_config::ids::NodeId;
use cluster_config::shard_group::CopyRole;
use proto::convert::status::RemoteError;

use super::command::PlannedCopy;
use super::group::{MetadataError, NotHere};

/// An explicit place for every copy, by shard. Errors: `Unavailable` while there are fewer live data nodes than copies.
pub(crate) fn plan_collection(state: &ClusterState, spec: &CollectionSpec) -> Result<Vec<Vec<PlannedCopy>>, NotHere> {
    let wanted = (spec.copies + spec.read_replicas) as usize;
    let available = state.placeable().count();
    if available < wanted {
        let error = RemoteError::new(
            ErrorKind::Unavailable,
            format!("{wanted} copies of each shard need as many live data nodes, there are {available}"),
        )
        .with_hint("start more nodes, or ask for fewer copies");
        return Err(NotHere::Failed(MetadataError::Refused(error)));
    }
    let mut load: BTreeMap<NodeId, u64> = BTreeMap::new();
    for record in state.shards.values().flat_map(|group| group.copies.values()) {
        *load.entry(record.node).or_default() += 1;
    }
    let mut first: BTreeMap<NodeId, u64> = BTreeMap::new();
    let shards = 0..spec.shard_count;
    Ok(shards
        .map(|_| {
            let mut planned = Vec::with_capacity(wanted);
            let mut zones = BTreeSet::new();
            for position in 0..wanted {
                let chosen = state
                    .placeable()
                    .filter(|node| planned.iter().all(|copy: &PlannedCopy| copy.node != node.id))
                    .min_by_key(|node| {
                        let share = |count: &BTreeMap<NodeId, u64>| {
                            count.get(&node.id).copied().unwrap_or(0) * 10_000 / u64::from(node.weight.max(1))
                        };
                        let leads = if position == 0 { share(&first) } else { 0 };
                        (zones.contains(node.zone.as_str()), leads, share(&load), node.id)
                    });
                let Some(node) = chosen else { break };
                zones.insert(node.zone.as_str());
                *load.entry(node.id).or_default() += 1;
                if position == 0 {
                    *first.entry(node.id).or_default() += 1;
                }
                let role = if position < spec.copies as usize { CopyRole::Voter } else { CopyRole::ReadReplica };
                planned.push(PlannedCopy { node: node.id, role });
            }
            planned
        })
        .collect())
}
