//! The metadata group as one register with compare-and-set: what the protocol may assume of it, and no more.

use std::collections::BTreeMap;

use cluster_config::ids::{CollectionId, CopyId, Incarnation, Lineage, NodeId, ShardId};
use cluster_config::seqno::PrimaryTerm;
use cluster_config::shard_group::{CopyPhase, CopyRecord, CopyRole, PrimaryGrant, ShardGroup};
use node::replication::messages::{Change, Proposal, ProposalOutcome};

pub(crate) const SHARD: ShardId = ShardId { collection: CollectionId(1), index: 0 };

pub(crate) struct Register {
    pub(crate) group: ShardGroup,
    pub(crate) history: Vec<ShardGroup>,
    /// Live processes, as metadata believes.
    pub(crate) alive: BTreeMap<CopyId, Incarnation>,
}

impl Register {
    /// Copies 1 to `voters` vote, those up to `copies` only read; the first `in_sync` are in sync. No primary yet.
    pub(crate) fn new(voters: u64, copies: u64, in_sync: u64, min_in_sync: u32) -> Self {
        let record = |copy: u64| {
            let role = if copy <= voters { CopyRole::Voter } else { CopyRole::ReadReplica };
            let phase = if copy <= in_sync { CopyPhase::InSync } else { CopyPhase::New };
            (CopyId(copy), CopyRecord { node: NodeId(copy), role, phase })
        };
        let group = ShardGroup {
            shard: SHARD,
            version: 1,
            primary_term: PrimaryTerm(0),
            primary: None,
            in_sync: (1..=in_sync).map(CopyId).collect(),
            copies: (1..=copies).map(record).collect(),
            lineage: Lineage(0),
            min_in_sync,
        };
        let alive = (1..=copies).map(|copy| (CopyId(copy), Incarnation(1))).collect();
        Self { history: vec![group.clone()], group, alive }
    }

    fn change(&mut self, next: ShardGroup) {
        self.group = ShardGroup { version: self.group.version + 1, ..next };
        self.group.check().expect("the register keeps its own invariants");
        self.history.push(self.group.clone());
    }

    /// Grants the role under the next term, to an in-sync copy; the copies in `drop` leave the in-sync set.
    pub(crate) fn grant(&mut self, copy: CopyId, drop: &[CopyId]) {
        assert!(self.group.in_sync.contains(&copy), "only an in-sync copy is promoted");
        let mut next = self.group.clone();
        next.primary_term = next.primary_term.next();
        next.primary = Some(PrimaryGrant { copy, incarnation: self.alive[&copy] });
        for gone in drop.iter().filter(|gone| **gone != copy) {
            leave(&mut next, *gone);
        }
        self.change(next);
    }

    /// A new copy takes the place of one that is not in sync.
    pub(crate) fn replace(&mut self, old: CopyId, new: CopyId) {
        let mut next = self.group.clone();
        let record = next.copies.remove(&old).expect("the copy exists");
        next.copies.insert(new, CopyRecord { phase: CopyPhase::CatchingUp, ..record });
        let incarnation = self.alive.remove(&old).expect("its process is known");
        self.alive.insert(new, incarnation);
        self.change(next);
    }

    pub(crate) fn expire(&mut self, copy: CopyId) {
        let mut next = self.group.clone();
        if next.in_sync.len() > 1 && next.primary_copy() != Some(copy) {
            leave(&mut next, copy);
            self.change(next);
        }
    }

    pub(crate) fn propose(&mut self, proposal: &Proposal) -> ProposalOutcome {
        let reason = match self.proposed(proposal) {
            Ok(next) => {
                self.change(next);
                String::new()
            }
            Err(reason) => reason.to_owned(),
        };
        ProposalOutcome { accepted: reason.is_empty(), reason, register: self.group.clone() }
    }

    fn proposed(&self, proposal: &Proposal) -> Result<ShardGroup, &'static str> {
        let mut next = self.group.clone();
        if proposal.expect_version != next.version {
            return Err("another version");
        }
        if next.primary_copy() != Some(proposal.by_copy) || next.primary_term != proposal.term {
            return Err("not the primary");
        }
        match proposal.change {
            Change::Add { copy, incarnation } => {
                if self.alive.get(&copy) != Some(&incarnation) {
                    return Err("not alive in that incarnation");
                }
                let record = next.copies.get_mut(&copy).ok_or("no such copy")?;
                if record.role != CopyRole::Voter {
                    return Err("no voter");
                }
                record.phase = CopyPhase::InSync;
                next.in_sync.insert(copy);
            }
            Change::Remove(copy) if copy == proposal.by_copy => return Err("a primary cannot remove itself"),
            // Accepted for a copy that is not in sync too: the new version voids an Add of unknown outcome.
            Change::Remove(copy) => leave(&mut next, copy),
            Change::HandOff(copy) => {
                if copy == proposal.by_copy || !next.in_sync.contains(&copy) {
                    return Err("not in sync, or primary already");
                }
                next.primary_term = next.primary_term.next();
                next.primary = Some(PrimaryGrant { copy, incarnation: self.alive[&copy] });
            }
            Change::FailSelf => {
                next.primary = None;
                if next.in_sync.len() > 1 {
                    leave(&mut next, proposal.by_copy);
                }
            }
        }
        Ok(next)
    }
}

fn leave(group: &mut ShardGroup, copy: CopyId) {
    if group.in_sync.remove(&copy)
        && let Some(record) = group.copies.get_mut(&copy)
    {
        record.phase = CopyPhase::CatchingUp;
    }
}
