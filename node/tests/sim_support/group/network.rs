//! The network of the simulated group: what is under way may be lost, repeated, or overtaken by anything sent later.

use std::sync::Arc;

use cluster_config::ids::CopyId;
use cluster_config::seqno::PrimaryTerm;
use cluster_config::shard_group::ShardGroup;
use node::replication::messages::{Append, AppendResult, Event, Proposal, ProposalOutcome, SendAppend};

use super::super::register::SHARD;
use super::Group;

/// Something under way.
#[derive(Clone)]
pub(super) enum Mail {
    Append { from: usize, life: u64, append_id: u64, to: usize, append: Append },
    Reply { to: usize, life: u64, append_id: u64, result: AppendResult },
    Propose { from: usize, life: u64, proposal: Proposal },
    Decision { to: usize, life: u64, id: u64, outcome: ProposalOutcome },
    Register { to: usize, life: u64, group: ShardGroup },
    Confirm { from: usize, life: u64, round: u64, to: usize },
    Confirmed { to: usize, life: u64, round: u64, copy: CopyId, term: PrimaryTerm },
}

impl Group {
    /// `None`: what is to be sent cannot be read.
    pub(super) fn append_of(&mut self, node: usize, send: SendAppend) -> Option<Append> {
        let available = (send.up_to.0 - send.prev.seqno.0) as usize;
        let count = if self.rng.percent(30) { self.rng.below(available + 1) } else { available };
        let log = self.memory_log(node);
        let first = send.prev.seqno.0 as usize;
        let disk = &self.nodes[node].disk;
        assert!(first >= disk.purged(), "nothing purged is sent");
        // New entries are still in memory; older ones are read.
        if self.rng.percent(50)
            && let Err(error) = disk.read_range(first.min(disk.len())..disk.len().min(first + count))
        {
            self.nodes[node].unreadable = Some(error);
            return None;
        }
        Some(Append {
            shard: SHARD,
            to_copy: send.to,
            from_copy: self.nodes[node].copy,
            lineage: self.register.group.lineage,
            term: send.term,
            cfg_version: send.cfg_version,
            prev: send.prev,
            entries: log[first..first + count].to_vec(),
            global_checkpoint: send.global_checkpoint,
            log_start: send.log_start,
            age_ms: send.age_ms,
        })
    }

    /// Something arrives, or is lost. A loss is noticed by the sender, though not always for what it is.
    pub(super) fn deliver(&mut self, reliable: bool) {
        if self.mail.is_empty() {
            return;
        }
        let which = self.rng.below(self.mail.len());
        if !reliable && self.is_cut(&self.mail[which]) {
            let mail = self.mail.swap_remove(which);
            self.count("cut off");
            return self.give_up(&mail);
        }
        let is_repeated =
            !reliable && self.rng.percent(self.chaos.repeat) && !matches!(self.mail[which], Mail::Propose { .. });
        let mail = if is_repeated { self.mail[which].clone() } else { self.mail.swap_remove(which) };
        if !reliable && !is_repeated && self.rng.percent(self.chaos.lose) {
            self.count("loss");
            return self.give_up(&mail);
        }
        if !reliable && self.rng.percent(3) {
            // The sender stops waiting, yet the message is still under way.
            self.count("late");
            self.give_up(&mail);
            return self.mail.push(mail);
        }
        match mail {
            Mail::Append { from, life, append_id, to, append } => {
                if self.nodes[to].core.is_none() {
                    return self.step_if(from, life, Event::AppendFailed { to: append.to_copy, append_id });
                }
                let request = self.request();
                self.nodes[to].appends.insert(request, (from, life, append_id));
                self.step(to, Event::AppendReceived { request, append });
            }
            Mail::Reply { to, life, append_id, result } => {
                self.step_if(to, life, Event::AppendReplied { append_id, result })
            }
            Mail::Propose { from, life, proposal } => {
                let outcome = self.register.propose(&proposal);
                self.count(if outcome.accepted { "proposal accepted" } else { "proposal refused" });
                self.mail.push(Mail::Decision { to: from, life, id: proposal.id, outcome });
            }
            Mail::Decision { to, life, id, outcome } => {
                self.step_if(to, life, Event::ProposalAnswered { id, outcome: Some(outcome) });
            }
            Mail::Register { to, life, group } => self.step_if(to, life, Event::RegisterRead(Some(Arc::new(group)))),
            Mail::Confirm { from, life, round, to } => self.confirm(from, life, round, to),
            Mail::Confirmed { to, life, round, copy, term } => {
                self.step_if(to, life, Event::ConfirmReplied { round, copy, term });
            }
        }
    }

    pub(super) fn give_up(&mut self, mail: &Mail) {
        match *mail {
            Mail::Append { from, life, append_id, ref append, .. } => {
                self.step_if(from, life, Event::AppendFailed { to: append.to_copy, append_id });
            }
            Mail::Reply { to, life, append_id, ref result } => {
                self.step_if(to, life, Event::AppendFailed { to: result.copy, append_id });
            }
            Mail::Propose { from, life, ref proposal } => {
                self.step_if(from, life, Event::ProposalAnswered { id: proposal.id, outcome: None });
            }
            Mail::Decision { to, life, id, .. } => {
                self.step_if(to, life, Event::ProposalAnswered { id, outcome: None })
            }
            Mail::Register { to, life, .. } => self.step_if(to, life, Event::RegisterRead(None)),
            Mail::Confirm { from, life, round, to } => {
                let copy = self.nodes[to].copy;
                self.step_if(from, life, Event::ConfirmFailed { round, copy });
            }
            Mail::Confirmed { to, life, round, copy, .. } => {
                self.step_if(to, life, Event::ConfirmFailed { round, copy });
            }
        }
    }

    pub(super) fn step_if(&mut self, node: usize, life: u64, event: Event) {
        if self.nodes[node].life == life {
            self.step(node, event);
        }
    }
}
