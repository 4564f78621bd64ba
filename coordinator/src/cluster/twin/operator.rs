//! What operators ask of the cluster in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use cluster_config::cluster_state::NodeLifecycle;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, Incarnation, Lineage, NodeId, ShardId};
use cluster_config::shard_group::{CopyRole, PrimaryGrant};
use futures::future::BoxFuture;

use super::client::{TwinClient, call};
use super::{Inner, Twin};
use crate::cluster::client::{NodeError, Peer};
use crate::cluster::operator::{CopyOutlook, ForcePromotion, OperatorClient, PromotionOutlook};

/// Counts a change and announces it once the caller's lock is free.
fn changed(twin: &Arc<Twin>, inner: &mut Inner) -> u64 {
    inner.state.version += 1;
    twin.announce();
    inner.state.version
}

impl OperatorClient for TwinClient {
    fn set_lifecycle(
        &self,
        peer: Peer,
        node: NodeId,
        lifecycle: NodeLifecycle,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<(bool, u64), NodeError>> {
        let twin = Arc::clone(&self.0);
        call(&self.0, "set_lifecycle", self.node_of(&peer), move |inner| {
            let missing = || NodeError::new(ErrorKind::NotFound, format!("node {node} does not exist"));
            let record = inner.state.nodes.get_mut(&node).ok_or_else(missing)?;
            let is_news = std::mem::replace(&mut record.lifecycle, lifecycle) != lifecycle;
            let version = if is_news { changed(&twin, inner) } else { inner.state.version };
            Ok((is_news, version))
        })
    }

    fn promote_replica(
        &self,
        peer: Peer,
        shard: ShardId,
        copy: CopyId,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<(bool, u64), NodeError>> {
        let twin = Arc::clone(&self.0);
        call(&self.0, "promote_replica", self.node_of(&peer), move |inner| {
            let missing = || NodeError::new(ErrorKind::NotFound, format!("shard {shard} has no copy {copy}"));
            let group = inner.state.shards.get_mut(&shard);
            let record = group.and_then(|group| group.copies.get_mut(&copy)).ok_or_else(missing)?;
            let is_news = std::mem::replace(&mut record.role, CopyRole::Voter) != CopyRole::Voter;
            let version = if is_news { changed(&twin, inner) } else { inner.state.version };
            Ok((is_news, version))
        })
    }

    fn force_promote(
        &self,
        peer: Peer,
        promotion: ForcePromotion,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<PromotionOutlook, NodeError>> {
        let twin = Arc::clone(&self.0);
        call(&self.0, "force_promote", self.node_of(&peer), move |inner| {
            let ForcePromotion { shard, copy, accept_data_loss_at, override_live, .. } = promotion;
            let missing = || NodeError::new(ErrorKind::NotFound, format!("shard {shard} has no copy {copy}"));
            let group = inner.state.shards.get_mut(&shard).ok_or_else(missing)?;
            let record = *group.copies.get(&copy).ok_or_else(missing)?;
            let look = |(copy, record): (&CopyId, &cluster_config::shard_group::CopyRecord)| CopyOutlook {
                copy: *copy,
                node: record.node,
                in_sync: group.in_sync.contains(copy),
                last: None,
                condition: "open".into(),
                reason: String::new(),
            };
            let copies = group.copies.iter().map(look).collect();
            // Everybody lives in here.
            let objection = if override_live { String::new() } else { "a member of the in-sync set lives".to_owned() };
            let done = match accept_data_loss_at {
                Some(_) if !objection.is_empty() => return Err(NodeError::new(ErrorKind::Conflict, objection)),
                Some(version) if version != group.version => {
                    let text = format!("the register is at version {}, expected {version}", group.version);
                    return Err(NodeError::new(ErrorKind::Conflict, text));
                }
                accepted => accepted.is_some(),
            };
            if done {
                group.version += 1;
                group.primary_term = group.primary_term.next();
                group.lineage = Lineage(group.lineage.0 + 1);
                group.primary = Some(PrimaryGrant { copy, incarnation: Incarnation(1) });
                group.in_sync = BTreeSet::from([copy]);
                group.copies = BTreeMap::from([(copy, record)]);
            }
            let register = group.clone();
            let state_version = if done { changed(&twin, inner) } else { inner.state.version };
            Ok(PromotionOutlook { done, register, copies, objection, state_version })
        })
    }
}
