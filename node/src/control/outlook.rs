//! What the leader knows of a shard's copies when an operator considers to promote one by force, and whether that is called for.

use std::collections::BTreeMap;

use cluster_config::cluster_state::{ClusterState, Liveness};
use cluster_config::ids::{CopyId, NodeId};
use cluster_config::seqno::LogPosition;
use cluster_config::shard_group::{CopyPhase, ShardGroup};
use proto::v1;

use super::observe::Observed;

/// How a copy is, as far as the leader has heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Reported by the present life of its node.
    Open,
    /// Its disk failed; reopened it may serve again.
    Poisoned,
    /// Its files are damaged or gone.
    Corrupt,
    /// Its node lives, and has not reported it.
    Closed,
    /// Its node is dead.
    Dead,
}

impl Condition {
    fn as_str(self) -> &'static str {
        match self {
            Condition::Open => "open",
            Condition::Poisoned => "poisoned",
            Condition::Corrupt => "corrupt",
            Condition::Closed => "closed",
            Condition::Dead => "dead",
        }
    }

    /// Whether the copy may come back without anybody's doing. A dead node may, too, but nobody can know.
    fn is_live(self) -> bool {
        matches!(self, Condition::Open | Condition::Poisoned | Condition::Closed)
    }
}

/// One copy.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outlook {
    pub(crate) node: NodeId,
    pub(crate) condition: Condition,
    /// End of its log, where that was seen.
    pub(crate) last: Option<LogPosition>,
    /// Why it is poisoned or corrupt.
    pub(crate) reason: String,
}

/// All copies of the shard.
pub(crate) fn outlook(state: &ClusterState, observed: &Observed, group: &ShardGroup) -> BTreeMap<CopyId, Outlook> {
    let look = |copy: CopyId, node: NodeId| {
        let record = state.nodes.get(&node);
        let seen = record.and_then(|record| observed.node(node, record.incarnation)?.copies.get(&copy));
        let condition = match seen {
            _ if record.is_none_or(|record| record.liveness == Liveness::Dead) => Condition::Dead,
            None => Condition::Closed,
            Some(seen) if seen.is_corrupt => Condition::Corrupt,
            Some(seen) if seen.is_poisoned => Condition::Poisoned,
            Some(_) => Condition::Open,
        };
        let last = seen.filter(|seen| !seen.is_corrupt).map(|seen| seen.last);
        Outlook { node, condition, last, reason: seen.map_or_else(String::new, |seen| seen.report.reason.clone()) }
    };
    group.copies.iter().map(|(copy, record)| (*copy, look(*copy, record.node))).collect()
}

/// Why `copy` should not be promoted by force; `None` where there is no other way.
pub(crate) fn objection(
    group: &ShardGroup,
    outlooks: &BTreeMap<CopyId, Outlook>,
    copy: CopyId,
    override_live: bool,
) -> Option<String> {
    let record = group.copies.get(&copy)?;
    if record.phase == CopyPhase::New {
        return Some(format!("copy {copy} is new and holds nothing"));
    }
    let own = outlooks.get(&copy)?;
    if own.condition != Condition::Open {
        return Some(format!("copy {copy} on node {} is {}, it must be open", own.node, own.condition.as_str()));
    }
    let live = outlooks.iter().find(|(other, look)| group.in_sync.contains(other) && look.condition.is_live());
    match live {
        Some((live, look)) if !override_live => Some(format!(
            "copy {live} on node {} is in sync and {}: it holds every acknowledged write",
            look.node,
            look.condition.as_str()
        )),
        _ => None,
    }
}

/// The outlooks as the wire carries them.
pub(crate) fn to_wire(group: &ShardGroup, outlooks: BTreeMap<CopyId, Outlook>) -> Vec<v1::CopyOutlook> {
    let one = |(copy, look): (CopyId, Outlook)| v1::CopyOutlook {
        copy_id: copy.0,
        node: look.node.0,
        in_sync: group.in_sync.contains(&copy),
        last: look.last.map(Into::into),
        condition: look.condition.as_str().to_owned(),
        reason: look.reason,
    };
    outlooks.into_iter().map(one).collect()
}
