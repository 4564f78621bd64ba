//! The metadata group: one agreed state, changed by the real `apply`.

use std::sync::Arc;

use cluster_config::ids::{CopyId, Incarnation, NodeId};
use cluster_config::shard_group::{CopyPhase, PrimaryGrant};

use super::{SHARD, World};
use crate::metadata::apply::apply;
use crate::metadata::command::{self, Command, ProposedChange, Reconfiguration, RegisterNode, Response};
use crate::replication::messages::{Change, Proposal, ProposalOutcome};
use crate::replication::mutant::Mutant;

impl World {
    pub(super) fn command(&mut self, command: &Command) -> Response {
        let response = apply(&mut self.metadata, command);
        let group = &self.metadata.cluster.shards[&SHARD];
        if group.version > self.group().version {
            self.history.push(Arc::new(group.clone()));
        }
        response
    }

    /// A process announces itself; the grants of its former life are void from then on.
    pub(super) fn register(&mut self, copy: usize, life: u8) -> Incarnation {
        let id = copy as u64 + 1;
        let response = self.command(&Command::RegisterNode(RegisterNode {
            node: NodeId(id),
            rpc_address: String::new(),
            http_address: String::new(),
            zone: String::new(),
            weight: 100,
            is_data: true,
            registration: life.to_string(),
            copies_on_disk: vec![CopyId(id)],
            feature_level: command::FEATURE_LEVEL,
        }));
        match response {
            Response::Registered { incarnation } => incarnation,
            other => unreachable!("a registration was answered by {other:?}"),
        }
    }

    pub(super) fn grant(&mut self, copy: usize, drop: bool) {
        let granted = CopyId(copy as u64 + 1);
        let incarnation = self.metadata.cluster.nodes[&NodeId(granted.0)].incarnation;
        if self.setting.mutant == Some(Mutant::PromoteOutsideInSync) && !self.group().in_sync.contains(&granted) {
            let shards = &mut Arc::make_mut(&mut self.metadata.cluster).shards;
            if let Some(group) = shards.get_mut(&SHARD) {
                group.in_sync.insert(granted);
                group.copies.entry(granted).and_modify(|record| record.phase = CopyPhase::InSync);
            }
        }
        let former = self.group().primary_copy().filter(|former| drop && *former != granted);
        self.reconfigure(Some(PrimaryGrant { copy: granted, incarnation }), former.into_iter().collect());
    }

    pub(super) fn reconfigure(&mut self, grant: Option<PrimaryGrant>, drop: Vec<CopyId>) {
        let expect_version = self.group().version;
        let part = Reconfiguration { shard: SHARD, expect_version, drop, grant, phases: Vec::new() };
        let response = self.command(&Command::Reconfigure(vec![part]));
        debug_assert_eq!(response, Response::Reconfigured { refused: Vec::new() });
    }

    pub(super) fn propose(&mut self, proposal: &Proposal) -> ProposalOutcome {
        let change = match proposal.change {
            Change::Add { copy, incarnation } => ProposedChange::Add { copy, incarnation },
            Change::Remove(copy) => ProposedChange::Remove(copy),
            Change::HandOff(copy) => ProposedChange::HandOff(copy),
            Change::FailSelf => ProposedChange::FailSelf,
        };
        let response = self.command(&Command::Propose(command::Proposal {
            shard: SHARD,
            expect_version: proposal.expect_version,
            by_copy: proposal.by_copy,
            term: proposal.term,
            change,
        }));
        match response {
            Response::Register { accepted, reason, register: Some(register) } => {
                self.hand_offs_done += u8::from(accepted && matches!(proposal.change, Change::HandOff(_)));
                ProposalOutcome { accepted, reason, register: *register }
            }
            other => unreachable!("a proposal was answered by {other:?}"),
        }
    }
}
