//! One shard's whole world as a value: copies that run the real core, their disks, the messages between them, and the metadata
//! state, changed by the real `apply`. A [`Step`] is one thing that happens; which ones can is [`World::steps`].

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use cluster_config::cluster_state::ClusterState;
use cluster_config::ids::{CollectionId, CopyId, Incarnation, Lineage, NodeId, OperationId, ShardId};
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use cluster_config::shard_group::{CopyPhase, CopyRecord, CopyRole, PrimaryGrant, ShardGroup};

use super::disk::Disk;
use super::oracle::Oracle;
use crate::metadata::apply::apply;
use crate::metadata::command::{self, Command, ProposedChange, Reconfiguration, RegisterNode, Response};
use crate::metadata::state::State;
use crate::replication::core::{Core, CoreOptions, Timing};
use crate::replication::messages::{
    Action, Append, AppendResult, Change, Event, Proposal, ProposalOutcome, RequestId, SendAppend, SendConfirm,
};
use crate::replication::mutant::{Mutant, planted};
use crate::replication::open::open;
use crate::replication::retention::Retention;
use crate::replication::storage::{EncodedEntry, LogWrite, StorageError};

pub(super) const SHARD: ShardId = ShardId { collection: CollectionId(1), index: 0 };

/// One tick makes a message due; two make whoever was silent late.
/// Strong reads and hand-offs are told from writes by their numbers.
pub(super) const FIRST_READ: u64 = 1000;
const HAND_OFF: RequestId = RequestId(2000);

const TIMING: Timing = Timing { heartbeat_ms: 1, ack_timeout_ms: 1, retry_ms: 1, proposal_pause_ms: 1 };

/// What may still happen: how often, and in which variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Bounds {
    /// Attempts to write; each operation is new, or a retry.
    pub(super) writes: u8,
    /// Grants of the primary role.
    pub(super) grants: u8,
    /// In-sync copies that metadata drops without being asked.
    pub(super) expiries: u8,
    /// Processes that die and come back.
    pub(super) crashes: u8,
    /// Disks that fail, so that the copy is reopened in the same process.
    pub(super) disk_failures: u8,
    /// Messages lost, or given up while still under way.
    pub(super) losses: u8,
    /// Messages delivered twice.
    pub(super) repeats: u8,
    /// Steps of some copy's clock.
    pub(super) ticks: u8,
    /// Strong reads.
    pub(super) reads: u8,
    /// Hand-offs that are asked for.
    pub(super) hand_offs: u8,
}

/// What stays the same for a whole run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) copies: u64,
    /// The first so many are in sync at the beginning, the others catch up.
    pub(super) in_sync: u64,
    pub(super) min_in_sync: u32,
    /// Disk work that no rule waits for happens at once: fewer states, the same rules.
    pub(super) eager: bool,
    /// The log is purged as soon as it may be.
    pub(super) purges: bool,
    /// Operations are tried again.
    pub(super) retries: bool,
    /// The rule to be broken. The core's own `check` is then left out: the oracles alone must notice.
    pub(super) mutant: Option<Mutant>,
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) setting: Setting,
    pub(super) left: Bounds,
    metadata: State,
    /// Every version of the register, the newest last.
    pub(super) history: Vec<Arc<ShardGroup>>,
    pub(super) copies: Vec<Arc<Replica>>,
    pub(super) mail: Vec<Mail>,
    pub(super) oracle: Oracle,
}

/// One process with one copy.
#[derive(Clone)]
pub(super) struct Replica {
    pub(super) core: Core,
    pub(super) disk: Disk,
    pub(super) incarnation: Incarnation,
    /// Counts openings, so that answers to an earlier life are not delivered.
    pub(super) life: u8,
    pub(super) now_ms: u64,
    /// Handed to the disk, in order.
    pub(super) writes: VecDeque<(u64, LogWrite)>,
    /// What is being looked up, for which term, and what was found when it was asked.
    pub(super) lookups: Vec<(OperationId, PrimaryTerm, Option<SeqNo>)>,
    apply_target: SeqNo,
    /// Whom an answer to the request of this number goes to. Free numbers are used again.
    asks: Vec<Option<Ask>>,
    /// It once became a snapshot of another copy.
    pub(super) fetched: bool,
}

#[derive(Clone, Copy)]
struct Ask {
    from: usize,
    life: u8,
    append_id: u64,
}

/// Something under way.
#[derive(Clone)]
pub(super) enum Mail {
    Append { from: usize, life: u8, append_id: u64, to: usize, append: Arc<Append> },
    Reply { to: usize, life: u8, append_id: u64, result: AppendResult },
    Propose { from: usize, life: u8, proposal: Proposal },
    Decision { to: usize, life: u8, id: u64, outcome: Arc<ProposalOutcome> },
    Register { to: usize, life: u8, version: usize },
    Confirm { from: usize, life: u8, round: u64, to: usize },
    Confirmed { to: usize, life: u8, round: u64, by: CopyId, term: PrimaryTerm },
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A copy learns a version of the register, by its place in the history.
    Learn { copy: usize, version: usize },
    /// The oldest so many writes share an fsync.
    Sync { copy: usize, writes: usize },
    /// Entries are applied up to here.
    Apply { copy: usize, up_to: SeqNo },
    /// An answer to a lookup arrives: what was found when it was asked (`early`), or what is found now.
    LookUp { copy: usize, early: bool },
    /// A message arrives; `cut` entries fewer were sent than could be. With `keep` it will arrive again.
    Deliver { mail: usize, keep: bool, cut: usize },
    /// A message is lost, which its sender notices sooner or later.
    Lose { mail: usize },
    /// The sender stops waiting, yet the message is still under way.
    GiveUp { mail: usize },
    Write { copy: usize, operation: OperationId },
    Tick { copy: usize },
    /// The process dies and comes back; so many of the writes under way, and all but so many applied entries, have survived.
    Crash { copy: usize, kept: usize, unapplied: usize },
    FailDisk { copy: usize },
    /// A copy whose disk failed is opened again in the same process.
    Reopen { copy: usize, kept: usize },
    /// Metadata grants the role; `drop` takes the former primary out of the in-sync set.
    Grant { copy: usize, drop: bool },
    Expire { copy: usize },
    Read { copy: usize },
    HandOff { copy: usize, to: usize },
    /// A copy that the log cannot help becomes a snapshot of another.
    Fetch { copy: usize, from: usize },
}

impl World {
    /// Copy 1 is granted the role; nothing else has happened.
    pub(super) fn new(setting: Setting, bounds: Bounds) -> Self {
        let phase = |copy| if copy <= setting.in_sync { CopyPhase::InSync } else { CopyPhase::CatchingUp };
        let record = |copy| (CopyId(copy), CopyRecord { node: NodeId(copy), role: CopyRole::Voter, phase: phase(copy) });
        let group = ShardGroup {
            shard: SHARD,
            version: 1,
            primary_term: PrimaryTerm(0),
            primary: None,
            in_sync: (1..=setting.in_sync).map(CopyId).collect(),
            copies: (1..=setting.copies).map(record).collect(),
            lineage: Lineage(0),
            min_in_sync: setting.min_in_sync,
        };
        let mut metadata = State::empty("model");
        let cluster: &mut ClusterState = Arc::make_mut(&mut metadata.cluster);
        cluster.shards.insert(SHARD, group.clone());
        let mut world = Self {
            setting,
            left: bounds,
            metadata,
            history: vec![Arc::new(group)],
            copies: Vec::new(),
            mail: Vec::new(),
            oracle: Oracle::default(),
        };
        for copy in 1..=setting.copies {
            let disk = Disk::new(CopyId(copy));
            let incarnation = world.register(copy as usize - 1, 1);
            let core = opened(&disk, incarnation, setting.purges);
            world.copies.push(Arc::new(Replica {
                core,
                disk,
                incarnation,
                life: 1,
                now_ms: 0,
                writes: VecDeque::new(),
                lookups: Vec::new(),
                apply_target: SeqNo::ZERO,
                asks: Vec::new(),
                fetched: false,
            }));
        }
        world.grant(0, false);
        world
    }

    pub(super) fn group(&self) -> &Arc<ShardGroup> {
        self.history.last().expect("the history begins with the first register")
    }

    // ---- what can happen ---------------------------------------------------------------------------------------------------

    pub(super) fn steps(&self, steps: &mut Vec<Step>) {
        for (copy, replica) in self.copies.iter().enumerate() {
            self.steps_of_copy(copy, replica, steps);
        }
        for (mail, what) in self.mail.iter().enumerate() {
            steps.push(Step::Deliver { mail, keep: false, cut: 0 });
            if matches!(what, Mail::Append { append, .. } if !append.entries.is_empty()) {
                steps.push(Step::Deliver { mail, keep: false, cut: 1 });
            }
            if self.left.repeats > 0 && !matches!(what, Mail::Propose { .. }) {
                steps.push(Step::Deliver { mail, keep: true, cut: 0 });
            }
            if self.left.losses > 0 {
                steps.extend([Step::Lose { mail }, Step::GiveUp { mail }]);
            }
        }
        let group = self.group();
        for copy in 0..self.copies.len() {
            let id = CopyId(copy as u64 + 1);
            let may_be_granted = group.in_sync.contains(&id) || self.setting.mutant == Some(Mutant::PromoteOutsideInSync);
            if self.left.grants > 0 && may_be_granted {
                steps.push(Step::Grant { copy, drop: false });
                if group.primary_copy().is_some_and(|primary| primary != id) {
                    steps.push(Step::Grant { copy, drop: true });
                }
            }
            let may_expire = group.in_sync.contains(&id) && group.in_sync.len() > 1 && group.primary_copy() != Some(id);
            if self.left.expiries > 0 && may_expire {
                steps.push(Step::Expire { copy });
            }
        }
    }

    fn steps_of_copy(&self, copy: usize, replica: &Replica, steps: &mut Vec<Step>) {
        let known = replica.core.group().map_or(0, |group| group.version);
        let learns_old = self.setting.mutant == Some(Mutant::OldRegistersLearned);
        let is_news = |version: &usize| learns_old || self.history[*version].version > known;
        steps.extend((0..self.history.len()).filter(is_news).map(|version| Step::Learn { copy, version }));
        if !replica.writes.is_empty() {
            steps.push(Step::Sync { copy, writes: replica.writes.len() });
            if replica.writes.len() > 1 {
                steps.push(Step::Sync { copy, writes: 1 });
            }
        }
        let applied = SeqNo(replica.disk.applied as u64);
        if replica.apply_target > applied {
            steps.push(Step::Apply { copy, up_to: applied.next() });
            if replica.apply_target > applied.next() {
                steps.push(Step::Apply { copy, up_to: replica.apply_target });
            }
        }
        if !replica.lookups.is_empty() {
            steps.extend([Step::LookUp { copy, early: true }, Step::LookUp { copy, early: false }]);
        }
        if self.left.writes > 0 && replica.core.is_primary() {
            let known = self.oracle.operations();
            let first = if self.setting.retries { 1 } else { known + 1 };
            steps.extend((first..=known + 1).map(|id| Step::Write { copy, operation: OperationId(id) }));
        }
        if self.left.reads > 0 && replica.core.is_primary() {
            steps.push(Step::Read { copy });
        }
        if self.left.hand_offs > 0 && replica.core.is_primary() {
            steps.extend((0..self.copies.len()).filter(|to| *to != copy).map(|to| Step::HandOff { copy, to }));
        }
        if replica.core.needs_snapshot() {
            let is_in_sync = |group: &ShardGroup, copy: usize| group.in_sync.contains(&CopyId(copy as u64 + 1));
            let is_needed = replica.core.group().is_some_and(|group| !is_in_sync(group, copy));
            let may_be_source = |from: &usize| is_needed && *from != copy && is_in_sync(self.group(), *from);
            steps.extend((0..self.copies.len()).filter(may_be_source).map(|from| Step::Fetch { copy, from }));
        }
        if self.left.ticks > 0 {
            steps.push(Step::Tick { copy });
        }
        if self.left.crashes > 0 {
            steps.push(Step::Crash { copy, kept: 0, unapplied: 0 });
            if !replica.writes.is_empty() {
                steps.push(Step::Crash { copy, kept: replica.writes.len(), unapplied: 0 });
            }
            if !self.setting.eager && replica.disk.applied > replica.disk.purged {
                steps.push(Step::Crash { copy, kept: replica.writes.len() / 2, unapplied: 1 });
            }
        }
        if replica.core.poisoned().is_some() {
            steps.push(Step::Reopen { copy, kept: 0 });
            if !replica.writes.is_empty() {
                steps.push(Step::Reopen { copy, kept: 1 });
            }
        } else if self.left.disk_failures > 0 {
            steps.push(Step::FailDisk { copy });
        }
    }

    // ---- what happens ------------------------------------------------------------------------------------------------------

    /// Takes one step, with everything that follows from it at once, and asks the oracles.
    pub(super) fn take(&mut self, step: Step) {
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

    fn happen(&mut self, step: Step) {
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
                self.step(copy, Event::Write { request: RequestId(operation.0 as u64), operation_id: operation, payload });
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

    fn step(&mut self, copy: usize, event: Event) {
        let actions = Arc::make_mut(&mut self.copies[copy]).core.step(event);
        for action in actions {
            self.perform(copy, action);
        }
    }

    fn step_if(&mut self, copy: usize, life: u8, event: Event) {
        if self.copies[copy].life == life {
            self.step(copy, event);
        }
    }

    fn perform(&mut self, copy: usize, action: Action) {
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

    fn deliver(&mut self, mail: Mail, cut: usize) {
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
    fn give_up(&mut self, mail: &Mail) {
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

    // ---- disks and lives ---------------------------------------------------------------------------------------------------

    fn sync(&mut self, copy: usize, writes: usize) {
        let replica = Arc::make_mut(&mut self.copies[copy]);
        let mut merged = LogWrite::default();
        let mut last = 0;
        for (write_id, write) in replica.writes.drain(..writes) {
            merged.merge(write);
            last = write_id;
        }
        match replica.disk.persist(merged) {
            Ok(()) => self.step(copy, Event::Persisted(last)),
            Err(broken) => self.oracle.report(broken),
        }
    }

    fn apply(&mut self, copy: usize, up_to: SeqNo) {
        match Arc::make_mut(&mut self.copies[copy]).disk.apply(up_to) {
            Ok(()) => self.step(copy, Event::Applied(up_to)),
            Err(broken) => self.oracle.report(broken),
        }
    }

    fn work_eagerly(&mut self) {
        for copy in 0..self.copies.len() {
            while !self.copies[copy].lookups.is_empty() {
                self.happen(Step::LookUp { copy, early: false });
            }
            let target = self.copies[copy].apply_target;
            if target.0 as usize > self.copies[copy].disk.applied && self.oracle.broken().is_none() {
                self.apply(copy, target);
            }
        }
    }

    /// Everything volatile goes. Of the writes under way the first `kept` have become durable.
    fn reopen(&mut self, copy: usize, kept: usize) {
        let replica = Arc::make_mut(&mut self.copies[copy]);
        let writes = std::mem::take(&mut replica.writes);
        for (_, write) in writes.into_iter().take(kept) {
            if let Err(broken) = replica.disk.persist(write) {
                self.oracle.report(broken);
            }
        }
        replica.core = opened(&replica.disk, replica.incarnation, self.setting.purges);
        replica.life += 1;
        replica.now_ms = 0;
        replica.lookups.clear();
        replica.apply_target = SeqNo(replica.disk.applied as u64);
        let (to, unanswered) = (replica.disk.copy, std::mem::take(&mut replica.asks));
        let life = replica.life;
        self.mail.retain(|mail| !mail.is_for_former_life(copy, life));
        for Ask { from, life, append_id } in unanswered.into_iter().flatten() {
            self.step_if(from, life, Event::AppendFailed { to, append_id });
        }
    }

    // ---- the metadata group ------------------------------------------------------------------------------------------------

    fn command(&mut self, command: &Command) -> Response {
        let response = apply(&mut self.metadata, command);
        let group = &self.metadata.cluster.shards[&SHARD];
        if group.version > self.group().version {
            self.history.push(Arc::new(group.clone()));
        }
        response
    }

    /// A process announces itself; the grants of its former life are void from then on.
    fn register(&mut self, copy: usize, life: u8) -> Incarnation {
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

    fn grant(&mut self, copy: usize, drop: bool) {
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

    fn reconfigure(&mut self, grant: Option<PrimaryGrant>, drop: Vec<CopyId>) {
        let expect_version = self.group().version;
        let part = Reconfiguration { shard: SHARD, expect_version, drop, grant, phases: Vec::new() };
        let response = self.command(&Command::Reconfigure(vec![part]));
        debug_assert_eq!(response, Response::Reconfigured { refused: Vec::new() });
    }

    fn propose(&mut self, proposal: &Proposal) -> ProposalOutcome {
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
                ProposalOutcome { accepted, reason, register: *register }
            }
            other => unreachable!("a proposal was answered by {other:?}"),
        }
    }

    // ---- for the oracles ---------------------------------------------------------------------------------------------------

    /// Everything arrives and is written, until nothing is under way. No time passes.
    pub(super) fn settle(&mut self) {
        for copy in 0..self.copies.len() {
            self.take(Step::Learn { copy, version: self.history.len() - 1 });
        }
        loop {
            let busy = |replica: &Arc<Replica>| !replica.writes.is_empty();
            if let Some(copy) = self.copies.iter().position(busy) {
                self.take(Step::Sync { copy, writes: self.copies[copy].writes.len() });
            } else if !self.mail.is_empty() {
                self.take(Step::Deliver { mail: 0, keep: false, cut: 0 });
            } else if let Some(copy) =
                self.copies.iter().position(|replica| replica.apply_target.0 as usize > replica.disk.applied)
            {
                self.take(Step::Apply { copy, up_to: self.copies[copy].apply_target });
            } else {
                return;
            }
        }
    }

    pub(super) fn proposals(&self) -> impl Iterator<Item = &Proposal> {
        self.mail.iter().filter_map(|mail| match mail {
            Mail::Propose { proposal, .. } => Some(proposal),
            _ => None,
        })
    }

    /// Operations that stand in some copy's log, in memory or on disk.
    pub(super) fn operations_in_logs(&self) -> BTreeSet<OperationId> {
        self.copies.iter().flat_map(|replica| replica.memory_log()).map(|entry| entry.operation_id).collect()
    }
}

impl Replica {
    /// The log as it is in memory: the disk's, with the writes under way.
    pub(super) fn memory_log(&self) -> Vec<&EncodedEntry> {
        let mut log: Vec<&EncodedEntry> = self.disk.log.iter().collect();
        for (_, write) in &self.writes {
            if let Some(cut) = write.truncate_from {
                log.truncate(cut.0 as usize - 1);
            }
            log.extend(&write.entries);
        }
        log
    }

    /// What the answer to each open request still means to the one who asked.
    pub(super) fn asked_by(&self) -> impl Iterator<Item = Option<(usize, u8, u64)>> {
        self.asks.iter().map(|ask| ask.map(|Ask { from, life, append_id }| (from, life, append_id)))
    }

    pub(super) fn apply_target(&self) -> SeqNo {
        self.apply_target
    }
}

impl Mail {
    fn is_for_former_life(&self, copy: usize, current: u8) -> bool {
        match *self {
            Mail::Append { .. } | Mail::Propose { .. } | Mail::Confirm { .. } => false,
            Mail::Reply { to, life, .. }
            | Mail::Decision { to, life, .. }
            | Mail::Register { to, life, .. }
            | Mail::Confirmed { to, life, .. } => {
                to == copy && life != current
            }
        }
    }
}

fn opened(disk: &Disk, incarnation: Incarnation, purges: bool) -> Core {
    // Either nothing stays that nobody needs, two entries are too many for a laggard, or everything stays.
    let bytes_min = if purges { 0 } else { u64::MAX };
    let retention = Retention { bytes_min, bytes_max: 64, age_max_ms: u64::MAX };
    let opened = open(disk).expect("the model's disk opens");
    Core::new(CoreOptions {
        incarnation,
        timing: TIMING,
        retention,
        stored: opened.stored,
        term_starts: opened.term_starts,
        unapplied: opened.unapplied,
        barrier_payload: Bytes::new(),
    })
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
    }
}
