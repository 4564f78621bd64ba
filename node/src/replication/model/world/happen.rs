//! What a step does: events for cores, and what becomes of their actions.

use std::sync::Arc;

use bytes::Bytes;
use cluster_config::ids::{CopyId, Lineage, OperationId};
use cluster_config::seqno::{PrimaryTerm, SeqNo};

use super::{Ask, HAND_OFF, Mail, Replica, SHARD, Step, World};
use crate::replication::messages::{Action, Append, Event, ProposalOutcome, RequestId, SendAppend, SendConfirm};
use crate::replication::mutant::planted;
use crate::replication::storage::StorageError;

impl World {
    /// Takes one step, with everything that follows from it at once, and asks the oracles.
    pub(in crate::replication::model) fn take(&mut self, step: Step) {
        let mutant = self.setting.mutant;
        planted(mutant, || {
            self.happen(step);
            if self.setting.eager {
                self.work_eagerly();
            }
        });
        let mut oracle = std::mem::take(&mut self.oracle);
        oracle.check(self);
        self.oracle = oracle;
    }

    pub(super) fn happen(&mut self, step: Step) {
        match step {
            Step::Learn { copy, version } => {
                let group = Arc::clone(&self.history[version]);
                self.step(copy, Event::Reconfigured(group));
            }
            Step::Sync { copy, writes } => self.sync(copy, writes),
            Step::Apply { copy, up_to } => self.apply(copy, up_to),
            Step::LookUp { copy, early } => {
                let replica = Arc::make_mut(&mut self.copies[copy]);
                if let Some((operation_id, term, found)) = replica.lookups.pop() {
                    let seqno = if early { found } else { replica.disk.find_operation(operation_id) };
                    self.step(copy, Event::OperationLookedUp { operation_id, term, seqno });
                }
            }
            Step::Deliver { mail, keep, cut } => {
                self.left.repeats -= u8::from(keep);
                let mail = if keep { self.mail[mail].clone() } else { self.mail.swap_remove(mail) };
                self.deliver(mail, cut);
            }
            Step::Lose { mail } => {
                self.left.losses -= 1;
                let mail = self.mail.swap_remove(mail);
                self.give_up(&mail);
            }
            Step::GiveUp { mail } => {
                self.left.losses -= 1;
                let mail = self.mail[mail].clone();
                self.give_up(&mail);
            }
            Step::Write { copy, operation } => {
                self.left.writes -= 1;
                self.oracle.attempt(operation);
                let payload = Bytes::copy_from_slice(&operation.0.to_be_bytes());
                self.step(
                    copy,
                    Event::Write { request: RequestId(operation.0 as u64), operation_id: operation, payload },
                );
            }
            Step::Tick { copy } => {
                self.left.ticks -= 1;
                let replica = Arc::make_mut(&mut self.copies[copy]);
                replica.now_ms += 1;
                let now_ms = replica.now_ms;
                self.step(copy, Event::Tick(now_ms));
            }
            Step::Crash { copy, kept, unapplied } => {
                self.left.crashes -= 1;
                let replica = Arc::make_mut(&mut self.copies[copy]);
                replica.disk.applied -= unapplied;
                let life = replica.life + 1;
                let incarnation = self.register(copy, life);
                Arc::make_mut(&mut self.copies[copy]).incarnation = incarnation;
                self.reopen(copy, kept);
            }
            Step::FailDisk { copy } => {
                self.left.disk_failures -= 1;
                self.step(copy, Event::StorageFailed(StorageError::Io("simulated".into())));
            }
            Step::Reopen { copy, kept } => self.reopen(copy, kept),
            Step::Grant { copy, drop } => {
                self.left.grants -= 1;
                self.grant(copy, drop);
            }
            Step::Expire { copy } => {
                self.left.expiries -= 1;
                self.reconfigure(None, vec![CopyId(copy as u64 + 1)]);
            }
            Step::Read { copy } => {
                self.left.reads -= 1;
                let request = self.oracle.begin_read();
                self.step(copy, Event::StrongRead { request });
            }
            Step::HandOff { copy, to } => {
                self.left.hand_offs -= 1;
                let to = CopyId(to as u64 + 1);
                self.step(copy, Event::HandOff { request: HAND_OFF, to, patience_ms: 2 });
            }
            Step::Fetch { copy, from } => {
                let source = self.copies[from].disk.clone();
                let replica = Arc::make_mut(&mut self.copies[copy]);
                replica.writes.clear();
                replica.disk.adopt(&source);
                replica.fetched = true;
                self.reopen(copy, 0);
            }
        }
    }

    pub(super) fn step(&mut self, copy: usize, event: Event) {
        let actions = Arc::make_mut(&mut self.copies[copy]).core.step(event);
        for action in actions {
            self.perform(copy, action);
        }
    }

    pub(super) fn step_if(&mut self, copy: usize, life: u8, event: Event) {
        if self.copies[copy].life == life {
            self.step(copy, event);
        }
    }

    pub(super) fn perform(&mut self, copy: usize, action: Action) {
        let replica = Arc::make_mut(&mut self.copies[copy]);
        let life = replica.life;
        match action {
            Action::Persist { write_id, write } => replica.writes.push_back((write_id, write)),
            Action::SendAppend(send) => {
                let append = Arc::new(append_of(replica, send));
                let to = send.to.0 as usize - 1;
                self.mail.push(Mail::Append { from: copy, life, append_id: send.append_id, to, append });
            }
            Action::ReplyAppend { request, result } => {
                if let Some(ask) = replica.asks.get_mut(request.0 as usize).and_then(Option::take) {
                    self.mail.push(Mail::Reply { to: ask.from, life: ask.life, append_id: ask.append_id, result });
                }
            }
            Action::ApplyUpTo(seqno) => replica.apply_target = seqno,
            Action::FindOperation { operation_id, term } => {
                let found = replica.disk.find_operation(operation_id);
                replica.lookups.push((operation_id, term, found));
            }
            Action::AckWrite { request, ack } => {
                let replica = Arc::clone(&self.copies[copy]);
                self.oracle.acknowledged(&replica, OperationId(request.0.into()), ack.seqno);
            }
            Action::RefuseWrite { request, refusal } => self.oracle.refused(OperationId(request.0.into()), &refusal),
            Action::Propose(proposal) => self.mail.push(Mail::Propose { from: copy, life, proposal }),
            Action::Purge(up_to) => {
                if let Err(broken) = replica.disk.purge(up_to) {
                    self.oracle.report(broken);
                }
            }
            Action::SendConfirm(SendConfirm { round, to, .. }) => {
                self.mail.push(Mail::Confirm { from: copy, life, round, to: to.0 as usize - 1 });
            }
            Action::ServeRead { request, seqno } => {
                let applied = SeqNo(replica.disk.applied as u64);
                self.oracle.served(request, seqno, applied);
            }
            Action::RefuseRead { request, .. } => self.oracle.refused_read(request),
            Action::EndHandOff { .. } => {}
            Action::ReadRegister => {
                let version = self.history.len() - 1;
                self.mail.push(Mail::Register { to: copy, life, version });
            }
        }
    }

    pub(super) fn deliver(&mut self, mail: Mail, cut: usize) {
        match mail {
            Mail::Append { from, life, append_id, to, append } => {
                let mut append = Append::clone(&append);
                append.entries.truncate(append.entries.len() - cut);
                let replica = Arc::make_mut(&mut self.copies[to]);
                let ask = Ask { from, life, append_id };
                let free = replica.asks.iter().position(Option::is_none);
                let request = free.unwrap_or_else(|| {
                    replica.asks.push(None);
                    replica.asks.len() - 1
                });
                replica.asks[request] = Some(ask);
                self.step(to, Event::AppendReceived { request: RequestId(request as u64), append });
            }
            Mail::Reply { to, life, append_id, result } => {
                self.step_if(to, life, Event::AppendReplied { append_id, result });
            }
            Mail::Propose { from, life, proposal } => {
                let (id, outcome) = (proposal.id, Arc::new(self.propose(&proposal)));
                self.mail.push(Mail::Decision { to: from, life, id, outcome });
            }
            Mail::Decision { to, life, id, outcome } => {
                let outcome = Some(ProposalOutcome::clone(&outcome));
                self.step_if(to, life, Event::ProposalAnswered { id, outcome });
            }
            Mail::Register { to, life, version } => {
                let group = Arc::clone(&self.history[version]);
                self.step_if(to, life, Event::RegisterRead(Some(group)));
            }
            Mail::Confirm { from, life, round, to } => {
                let core = &self.copies[to].core;
                let term = if core.poisoned().is_some() { PrimaryTerm(0) } else { core.confirmed_term() };
                self.mail.push(Mail::Confirmed { to: from, life, round, by: core.copy(), term });
            }
            Mail::Confirmed { to, life, round, by, term } => {
                self.step_if(to, life, Event::ConfirmReplied { round, copy: by, term });
            }
        }
    }

    /// Whoever waits for this, or for its answer, waits no longer.
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
                self.step_if(to, life, Event::ProposalAnswered { id, outcome: None });
            }
            Mail::Register { to, life, .. } => self.step_if(to, life, Event::RegisterRead(None)),
            Mail::Confirm { from, life, round, to } => {
                self.step_if(from, life, Event::ConfirmFailed { round, copy: CopyId(to as u64 + 1) });
            }
            Mail::Confirmed { to, life, round, by, .. } => {
                self.step_if(to, life, Event::ConfirmFailed { round, copy: by });
            }
        }
    }
}

fn append_of(replica: &Replica, send: SendAppend) -> Append {
    let log = replica.memory_log();
    let entries = log[send.prev.seqno.0 as usize..send.up_to.0 as usize].iter().map(|entry| (*entry).clone()).collect();
    Append {
        shard: SHARD,
        to_copy: send.to,
        from_copy: replica.disk.copy,
        lineage: Lineage(0),
        term: send.term,
        cfg_version: send.cfg_version,
        prev: send.prev,
        entries,
        global_checkpoint: send.global_checkpoint,
        log_start: send.log_start,
        age_ms: send.age_ms,
    }
}
