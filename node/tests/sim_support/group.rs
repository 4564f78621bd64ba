//! A whole group of copies in one thread: cores, disks, a network that loses, repeats and reorders, and a register.
//!
//! Everything random comes from one seed. After each step the oracles in [`Group::check`] must hold.

mod cuts;
mod reads;
mod snapshots;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use cluster_config::ids::{CopyId, Incarnation, OperationId};
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use cluster_config::shard_group::{CopyRole, ShardGroup};
use node::replication::Retention;
use node::replication::core::{Core, CoreOptions, Timing};
use node::replication::messages::{
    Action, Append, AppendResult, Event, Proposal, ProposalOutcome, RequestId, SendAppend, WriteRefusal,
};
use node::replication::open::open;
use node::replication::storage::{CopyStorage, EncodedEntry, LogWrite, StorageError};

use self::cuts::Cut;
use self::reads::Calls;
use super::Rng;
use super::disk::SimDisk;
use super::register::{Register, SHARD};

/// Something under way. It may be lost, repeated, or overtaken by anything sent later.
#[derive(Clone)]
enum Mail {
    Append { from: usize, life: u64, append_id: u64, to: usize, append: Append },
    Reply { to: usize, life: u64, append_id: u64, result: AppendResult },
    Propose { from: usize, life: u64, proposal: Proposal },
    Decision { to: usize, life: u64, id: u64, outcome: ProposalOutcome },
    Register { to: usize, life: u64, group: ShardGroup },
    Confirm { from: usize, life: u64, round: u64, to: usize },
    Confirmed { to: usize, life: u64, round: u64, copy: CopyId, term: PrimaryTerm },
}

/// One process with one copy.
struct Node {
    copy: CopyId,
    disk: Arc<SimDisk>,
    incarnation: Incarnation,
    core: Option<Core>,
    /// Counts openings of the copy, so that answers to an earlier life are not delivered.
    life: u64,
    writes: VecDeque<(u64, LogWrite)>,
    lookups: Vec<(OperationId, PrimaryTerm)>,
    apply_target: usize,
    /// How far the log is to be purged.
    purge: Option<SeqNo>,
    /// Taken from another copy, to replace this one.
    snapshot: Option<Vec<EncodedEntry>>,
    appends: BTreeMap<RequestId, (usize, u64, u64)>,
    /// Its log was compared with the externalised entries up to here.
    compared: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// At least one attempt is under way or ended in the unknown.
    Maybe,
    /// Every attempt was refused as not taken.
    Refused,
    Acked(SeqNo),
}

/// How much goes wrong, in percent of the chances. Drawn per run, so that each kind of fault is sometimes rare and sometimes common.
struct Chaos {
    lose: u64,
    repeat: u64,
    crash: u64,
    failover: u64,
    poison: u64,
    cut: u64,
    /// Snapshots, strong reads and hand-offs are asked for this often.
    calls: u64,
    retention: Retention,
}

pub(crate) struct Group {
    rng: Rng,
    now_ms: u64,
    chaos: Chaos,
    register: Register,
    nodes: Vec<Node>,
    mail: Vec<Mail>,
    requests: BTreeMap<RequestId, (OperationId, usize, u64)>,
    next_request: u64,
    operations: BTreeMap<OperationId, Fate>,
    attempts: BTreeMap<OperationId, usize>,
    /// Entries some copy holds to be committed, in order.
    externalised: Vec<EncodedEntry>,
    externalised_ids: BTreeSet<OperationId>,
    primaries: BTreeMap<PrimaryTerm, (CopyId, u64)>,
    calls: Calls,
    cut: Option<Cut>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    steps: u64,
}

impl Group {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let voters = 2 + rng.below(2) as u64;
        let copies = voters + rng.below(2) as u64;
        let in_sync = 1 + rng.below(voters as usize) as u64;
        let min_in_sync = if rng.percent(25) { 2 } else { 1 };
        let level = |rng: &mut Rng, levels: [u64; 3]| levels[rng.below(3)];
        let chaos = Chaos {
            lose: level(&mut rng, [0, 5, 25]),
            repeat: level(&mut rng, [0, 5, 25]),
            crash: level(&mut rng, [0, 20, 100]),
            failover: level(&mut rng, [0, 20, 100]),
            poison: level(&mut rng, [0, 0, 50]),
            cut: level(&mut rng, [0, 10, 40]),
            calls: level(&mut rng, [0, 30, 100]),
            // An entry takes 64 bytes, and the log waits for laggards with 10, 64 or all of them.
            retention: Retention {
                bytes_min: level(&mut rng, [0, 0, 256]),
                bytes_max: level(&mut rng, [640, 4096, 1 << 30]),
                ..Retention::default()
            },
        };
        let node = |copy| Node {
            copy: CopyId(copy),
            disk: Arc::new(SimDisk::new(CopyId(copy), SHARD)),
            incarnation: Incarnation(1),
            core: None,
            life: 0,
            writes: VecDeque::new(),
            lookups: Vec::new(),
            apply_target: 0,
            purge: None,
            snapshot: None,
            appends: BTreeMap::new(),
            compared: 0,
        };
        let mut group = Self {
            rng,
            now_ms: 0,
            chaos,
            register: Register::new(voters, copies, in_sync, min_in_sync),
            nodes: (1..=copies).map(node).collect(),
            mail: Vec::new(),
            requests: BTreeMap::new(),
            next_request: 0,
            operations: BTreeMap::new(),
            attempts: BTreeMap::new(),
            externalised: Vec::new(),
            externalised_ids: BTreeSet::new(),
            primaries: BTreeMap::new(),
            calls: Calls::default(),
            cut: None,
            counts: BTreeMap::new(),
            steps: 0,
        };
        (0..group.nodes.len()).for_each(|node| group.open(node));
        group.register.grant(CopyId(1), &[]);
        group
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    // ---- lives of processes ------------------------------------------------------------------------------------------------

    fn open(&mut self, node: usize) {
        let (now_ms, retention) = (self.now_ms, self.chaos.retention);
        let node = &mut self.nodes[node];
        let opened = open(&*node.disk).expect("the simulated disk opens");
        let mut core = Core::new(CoreOptions {
            incarnation: node.incarnation,
            timing: Timing::default(),
            retention,
            stored: opened.stored,
            term_starts: opened.term_starts,
            unapplied: opened.unapplied,
            barrier_payload: Bytes::from_static(b"barrier"),
        });
        core.step(Event::Tick(now_ms));
        node.core = Some(core);
        node.life += 1;
        node.apply_target = node.disk.applied();
        node.compared = 0;
    }

    /// The copy goes, and with it everything volatile. Of the writes under way some may have become durable, in order.
    fn shut(&mut self, node: usize) {
        let lost_applied = self.rng.below(4);
        let kept = self.rng.below(self.nodes[node].writes.len() + 1);
        if self.rng.percent(50) {
            self.purge(node);
        }
        let node = &mut self.nodes[node];
        (node.purge, node.snapshot) = (None, None);
        for (_, write) in node.writes.drain(..).take(kept) {
            node.disk.persist(write).expect("the disk takes it");
        }
        node.disk.lose_applied(node.disk.applied().saturating_sub(lost_applied));
        node.core = None;
        node.lookups.clear();
        let (to, unanswered) = (node.copy, std::mem::take(&mut node.appends));
        for (from, life, append_id) in unanswered.into_values() {
            self.step_if(from, life, Event::AppendFailed { to, append_id });
        }
    }

    fn crash(&mut self, node: usize) {
        self.count("crash");
        self.shut(node);
    }

    /// The process starts again and registers: a new incarnation, and the role, if it held it, is granted anew or passed on.
    fn restart(&mut self, node: usize) {
        let copy = self.nodes[node].copy;
        self.nodes[node].incarnation.0 += 1;
        let incarnation = self.nodes[node].incarnation;
        self.register.alive.insert(copy, incarnation);
        if self.register.group.primary_copy() == Some(copy) {
            let heir = self.heir(copy).filter(|_| self.rng.percent(50));
            self.register.grant(
                heir.unwrap_or(copy),
                if heir.is_some() && self.rng.percent(50) { std::slice::from_ref(&copy) } else { &[] },
            );
            self.count("re-grant");
        }
        self.open(node);
    }

    fn heir(&mut self, not: CopyId) -> Option<CopyId> {
        let heirs: Vec<CopyId> = self.register.group.in_sync.iter().copied().filter(|copy| *copy != not).collect();
        self.rng.pick(&heirs).copied()
    }

    fn failover(&mut self) {
        let Some(old) = self.register.group.primary_copy() else { return self.grant_if_vacant() };
        if let Some(heir) = self.heir(old) {
            let drop: &[CopyId] = if self.rng.percent(70) { &[old] } else { &[] };
            self.register.grant(heir, drop);
            self.count("failover");
        } else if self.rng.percent(20) {
            self.register.grant(old, &[]);
            self.count("re-grant");
        }
    }

    fn grant_if_vacant(&mut self) {
        if self.register.group.primary.is_some() {
            return;
        }
        let in_sync: Vec<CopyId> = self.register.group.in_sync.iter().copied().collect();
        let usable = |copy: &&CopyId| self.core_of(**copy).is_some_and(|core| core.poisoned().is_none());
        let usable: Vec<CopyId> = in_sync.iter().filter(usable).copied().collect();
        if let Some(copy) = self.rng.pick(&usable).copied() {
            self.register.grant(copy, &[]);
            self.count("vacancy filled");
        }
    }

    fn core_of(&self, copy: CopyId) -> Option<&Core> {
        self.nodes[copy.0 as usize - 1].core.as_ref()
    }

    // ---- events ------------------------------------------------------------------------------------------------------------

    fn step(&mut self, node: usize, event: Event) {
        let Some(core) = &mut self.nodes[node].core else { return };
        let actions = core.step(event);
        actions.into_iter().for_each(|action| self.perform(node, action));
    }

    fn perform(&mut self, node: usize, action: Action) {
        let life = self.nodes[node].life;
        match action {
            Action::Persist { write_id, write } => self.nodes[node].writes.push_back((write_id, write)),
            Action::SendAppend(send) => {
                let append = self.append_of(node, send);
                let to = send.to.0 as usize - 1;
                self.mail.push(Mail::Append { from: node, life, append_id: send.append_id, to, append });
            }
            Action::ReplyAppend { request, result } => {
                if let Some((to, life, append_id)) = self.nodes[node].appends.remove(&request) {
                    self.mail.push(Mail::Reply { to, life, append_id, result });
                }
            }
            Action::ApplyUpTo(seqno) => self.nodes[node].apply_target = seqno.0 as usize,
            Action::FindOperation { operation_id, term } => self.nodes[node].lookups.push((operation_id, term)),
            Action::AckWrite { request, ack } => self.acked(node, request, ack.seqno, ack.copies_acked),
            Action::RefuseWrite { request, refusal } => self.refused(request, &refusal),
            Action::Propose(proposal) => self.mail.push(Mail::Propose { from: node, life, proposal }),
            Action::ReadRegister => {
                let group = self.register.group.clone();
                self.mail.push(Mail::Register { to: node, life, group });
            }
            Action::Purge(up_to) => self.nodes[node].purge = Some(up_to),
            Action::SendConfirm(send) => self.send_confirm(node, send),
            Action::ServeRead { request, seqno } => self.served(node, request, seqno),
            Action::RefuseRead { request, .. } => self.read_refused(request),
            Action::EndHandOff { request, result } => self.handed_off(node, request, result),
        }
    }

    /// The log as it is in memory: the disk's, with the writes under way, and what is purged before it.
    fn memory_log(&self, node: usize) -> Vec<EncodedEntry> {
        let mut log = self.nodes[node].disk.history();
        for (_, write) in &self.nodes[node].writes {
            if let Some(cut) = write.truncate_from {
                log.truncate(cut.0 as usize - 1);
            }
            log.extend(write.entries.iter().cloned());
        }
        log
    }

    fn append_of(&mut self, node: usize, send: SendAppend) -> Append {
        let available = (send.up_to.0 - send.prev.seqno.0) as usize;
        let count = if self.rng.percent(30) { self.rng.below(available + 1) } else { available };
        let log = self.memory_log(node);
        let first = send.prev.seqno.0 as usize;
        assert!(first >= self.nodes[node].disk.purged(), "nothing purged is sent");
        Append {
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
        }
    }

    /// Something arrives, or is lost. A loss is noticed by the sender, though not always for what it is.
    fn deliver(&mut self, reliable: bool) {
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

    fn step_if(&mut self, node: usize, life: u64, event: Event) {
        if self.nodes[node].life == life {
            self.step(node, event);
        }
    }

    /// One finished job of the node's disk: a write, an apply step, a lookup, or housekeeping.
    fn work_disk(&mut self, node: usize) {
        if self.nodes[node].core.is_none() {
            return;
        }
        match self.rng.below(10) {
            0..=2 => {
                // Group commit: any number of the writes that wait share an fsync.
                let waiting = self.nodes[node].writes.len();
                let count = (1 + self.rng.below(waiting)).min(waiting);
                let mut merged: Option<(u64, LogWrite)> = None;
                for (write_id, write) in self.nodes[node].writes.drain(..count) {
                    match &mut merged {
                        Some((last, all)) => {
                            *last = write_id;
                            all.merge(write);
                        }
                        none => *none = Some((write_id, write)),
                    }
                }
                if let Some((write_id, write)) = merged {
                    self.nodes[node].disk.persist(write).expect("the disk takes it");
                    self.step(node, Event::Persisted(write_id));
                }
            }
            3..=5 => {
                let (disk, target) = (Arc::clone(&self.nodes[node].disk), self.nodes[node].apply_target);
                let from = disk.applied();
                if from < target {
                    let to = from + 1 + self.rng.below(target - from);
                    disk.apply(&disk.history()[from..to]).expect("the disk applies");
                    self.step(node, Event::Applied(SeqNo(to as u64)));
                }
            }
            9 => {
                self.purge(node);
                self.keep_floor(node);
            }
            _ => {
                if let Some((operation_id, term)) = self.nodes[node].lookups.pop() {
                    let seqno = self.nodes[node].disk.find_operation(operation_id).expect("the disk searches");
                    self.step(node, Event::OperationLookedUp { operation_id, term, seqno });
                }
            }
        }
    }

    fn request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    // ---- the client --------------------------------------------------------------------------------------------------------

    /// Writes something new, or tries again what is not acknowledged, at some node.
    fn write(&mut self, node: usize, only_retry: bool) {
        if self.nodes[node].core.is_none() {
            return;
        }
        let open: Vec<OperationId> =
            self.operations.iter().filter(|(_, fate)| !matches!(fate, Fate::Acked(_))).map(|(id, _)| *id).collect();
        let acked_again = !only_retry && self.rng.percent(5);
        let known: Vec<OperationId> = if acked_again { self.operations.keys().copied().collect() } else { open };
        let retry = (only_retry || self.rng.percent(50)).then(|| self.rng.pick(&known).copied()).flatten();
        let operation_id = match retry {
            Some(id) => id,
            None if only_retry => return,
            None => OperationId(self.operations.len() as u128 + 1),
        };
        let request = self.request();
        let life = self.nodes[node].life;
        self.requests.insert(request, (operation_id, node, life));
        let fate = self.operations.entry(operation_id).or_insert(Fate::Maybe);
        if *fate == Fate::Refused {
            *fate = Fate::Maybe;
        }
        *self.attempts.entry(operation_id).or_default() += 1;
        let payload = Bytes::copy_from_slice(&operation_id.0.to_be_bytes());
        self.step(node, Event::Write { request, operation_id, payload });
    }

    fn acked(&mut self, node: usize, request: RequestId, seqno: SeqNo, copies_acked: u32) {
        self.count("ack");
        let (operation_id, ..) = self.requests.remove(&request).expect("a write is answered once");
        self.externalise(node);
        let entry = self.externalised.get(seqno.0 as usize - 1).expect("an acknowledged write is committed");
        assert_eq!(entry.operation_id, operation_id, "acknowledged at {seqno}, but another operation stands there");
        assert!(self.nodes[node].disk.applied() >= seqno.0 as usize, "an acknowledged write is applied on its primary");
        let holders =
            self.nodes.iter().filter(|node| node.disk.entry(seqno.0 as usize).as_ref() == Some(entry)).count();
        assert!(holders >= copies_acked as usize, "{copies_acked} copies acknowledged {seqno}, {holders} hold it");
        let before = self.operations.insert(operation_id, Fate::Acked(seqno));
        if let Some(Fate::Acked(earlier)) = before {
            assert_eq!(earlier, seqno, "a retry was acknowledged at another position");
        }
        self.show(seqno);
    }

    fn refused(&mut self, request: RequestId, refusal: &WriteRefusal) {
        let (operation_id, ..) = self.requests.remove(&request).expect("a write is answered once");
        let attempts = self.attempts.get_mut(&operation_id).expect("it was attempted");
        match refusal {
            WriteRefusal::Interrupted => self.count("interrupted"),
            WriteRefusal::NotPrimary | WriteRefusal::NotEnoughCopies { .. } | WriteRefusal::Overloaded => {
                *attempts -= 1;
                if *attempts == 0 && self.operations[&operation_id] == Fate::Maybe {
                    self.operations.insert(operation_id, Fate::Refused);
                    let taken = self.externalised_ids.contains(&operation_id);
                    assert!(!taken, "operation {operation_id} was refused as not taken, yet it is committed");
                }
            }
        }
    }

    // ---- oracles -----------------------------------------------------------------------------------------------------------

    /// Compares what a copy holds to be committed with what any copy ever did.
    fn externalise(&mut self, node: usize) {
        let Some(core) = &self.nodes[node].core else { return };
        let committed = core.global_checkpoint().0 as usize;
        for seqno in self.nodes[node].compared + 1..=committed {
            let entry = self.nodes[node].disk.entry(seqno).expect("the global checkpoint is durable");
            if let Some(known) = self.externalised.get(seqno - 1) {
                assert_eq!(*known, entry, "copy {} committed something else at {seqno}", self.nodes[node].copy);
                continue;
            }
            if entry.operation_id != OperationId(0) {
                assert!(self.externalised_ids.insert(entry.operation_id), "operation {} twice", entry.operation_id);
                let fate = self.operations[&entry.operation_id];
                assert!(fate != Fate::Refused, "operation {} was refused as not taken", entry.operation_id);
            }
            self.externalised.push(entry);
        }
        self.nodes[node].compared = self.nodes[node].compared.max(committed);
    }

    fn check(&mut self) {
        for node in 0..self.nodes.len() {
            self.externalise(node);
            let Some(core) = &self.nodes[node].core else { continue };
            core.check().unwrap_or_else(|broken| panic!("copy {}: {broken}", core.copy()));
            if let Some(StorageError::Corrupt(why)) = core.poisoned() {
                panic!("copy {} diverged: {why}", core.copy());
            }
            // A grant whose term is not durable yet has shown itself to nobody, and may be taken up again after a reopening.
            let term = core.confirmed_term();
            if core.is_primary_in(term) {
                let holder = (core.copy(), self.nodes[node].life);
                assert_eq!(*self.primaries.entry(term).or_insert(holder), holder, "two primaries in term {term}");
            }
        }
        // Inv2: a copy of the register's in-sync set holds every externalised entry, durably.
        if let Some(last) = self.externalised.last() {
            for copy in &self.register.group.in_sync {
                let held = self.nodes[copy.0 as usize - 1].disk.entry(self.externalised.len());
                assert_eq!(held.as_ref(), Some(last), "in-sync copy {copy} lacks a committed entry");
            }
        }
        self.steps += 1;
        if self.steps.is_multiple_of(64) {
            self.check_log_matching();
        }
    }

    /// Inv1: where two logs have an entry of the same seqno and term, they are equal up to there.
    fn check_log_matching(&self) {
        let logs: Vec<_> = (0..self.nodes.len()).map(|node| self.memory_log(node)).collect();
        for (a, b) in logs.iter().enumerate().flat_map(|(n, a)| logs[..n].iter().map(move |b| (a, b))) {
            if let Some(agreed) = (0..a.len().min(b.len())).rev().find(|n| a[*n].term == b[*n].term) {
                assert_eq!(a[..=agreed], b[..=agreed], "logs agree at {} but not before", agreed + 1);
            }
        }
    }

    // ---- phases ------------------------------------------------------------------------------------------------------------

    /// Anything may happen.
    pub(crate) fn run_chaos(&mut self, steps: usize) {
        for _ in 0..steps {
            let node = self.rng.below(self.nodes.len());
            match self.rng.below(100) {
                0..=39 => self.deliver(false),
                40..=64 => self.work_disk(node),
                65..=75 => self.write(node, false),
                76..=79 => self.strong_read(),
                80..=87 => {
                    self.now_ms += self.rng.next() % 150;
                    let now_ms = self.now_ms;
                    self.step(node, Event::Tick(now_ms));
                }
                88..=90 => self.learn(node),
                91 if self.rng.percent(self.chaos.cut) => self.cut(node),
                94 if self.rng.percent(20) => {
                    // A long silence: everything that was behind is late now.
                    self.now_ms += 2500;
                    (0..self.nodes.len()).for_each(|node| self.step(node, Event::Tick(self.now_ms)));
                }
                95 if self.rng.percent(self.chaos.crash) && self.nodes[node].core.is_some() => self.crash(node),
                95 | 96 if self.nodes[node].core.is_none() => self.restart(node),
                97 if self.rng.percent(self.chaos.failover) => self.failover(),
                97 => self.grant_if_vacant(),
                92 | 93 if self.rng.percent(self.chaos.calls) => self.call(node),
                98 if self.rng.percent(self.chaos.failover / 2) => {
                    let copy = self.nodes[node].copy;
                    self.register.expire(copy);
                }
                99 if self.rng.percent(self.chaos.poison) => self.poison_and_reopen(node),
                _ => {}
            }
            self.check();
        }
    }

    fn call(&mut self, node: usize) {
        match self.rng.below(10) {
            0..=2 => self.hand_off(node),
            _ => self.fetch_snapshot(node),
        }
    }

    /// The disk fails once; sooner or later the copy is opened again **in the same process**, so under the same incarnation.
    fn poison_and_reopen(&mut self, node: usize) {
        let Some(core) = &self.nodes[node].core else { return };
        if core.poisoned().is_none() {
            self.count("disk failure");
            return self.step(node, Event::StorageFailed(StorageError::Io("simulated".into())));
        }
        self.count("reopened");
        self.shut(node);
        self.open(node);
    }

    /// A node learns a register; sometimes an old one comes late.
    fn learn(&mut self, node: usize) {
        if self.is_cut_from_metadata(node) {
            return;
        }
        let old = self.rng.percent(20);
        let at = if old { self.rng.below(self.register.history.len()) } else { self.register.history.len() - 1 };
        let group = Arc::new(self.register.history[at].clone());
        self.step(node, Event::Reconfigured(group));
    }

    /// Everything works again: the group must come together, and every operation must get its answer.
    pub(crate) fn heal(&mut self) {
        self.cut = None;
        for node in 0..self.nodes.len() {
            if self.nodes[node].core.as_ref().is_some_and(|core| core.poisoned().is_some()) {
                self.crash(node);
            }
            if self.nodes[node].core.is_none() {
                self.restart(node);
            }
        }
        for _ in 0..600 {
            self.now_ms += 100;
            self.grant_if_vacant();
            for node in 0..self.nodes.len() {
                self.step(node, Event::Tick(self.now_ms));
                let group = Arc::new(self.register.group.clone());
                self.step(node, Event::Reconfigured(group));
                (0..20).for_each(|_| self.work_disk(node));
                self.fetch_snapshot(node);
            }
            let primary =
                (0..self.nodes.len()).find(|node| self.nodes[*node].core.as_ref().is_some_and(Core::is_primary));
            if let Some(primary) = primary {
                (0..3).for_each(|_| self.write(primary, true));
                self.strong_read();
            }
            for _ in 0..40 {
                self.deliver(true);
                self.check();
            }
            if self.is_whole() {
                return;
            }
        }
        let state = |node: &Node| match &node.core {
            Some(core) => format!(
                "copy {}: primary {} term {} last {:?} global {} applied {}\n",
                node.copy,
                core.is_primary(),
                core.confirmed_term(),
                core.last(),
                core.global_checkpoint(),
                core.applied()
            ),
            None => format!("copy {}: down\n", node.copy),
        };
        let open = self.operations.values().filter(|fate| !matches!(fate, Fate::Acked(_))).count();
        let states: String = self.nodes.iter().map(state).collect();
        panic!("the group did not come together in 60 s; {open} operations open; {:?}\n{states}", self.register.group);
    }

    fn is_whole(&self) -> bool {
        let voters = self.register.group.copies.iter().filter(|(_, record)| record.role == CopyRole::Voter).count();
        let all_acked = self.operations.values().all(|fate| matches!(fate, Fate::Acked(_)));
        let first = self.nodes[0].disk.history();
        let equal = self.nodes.iter().all(|node| node.disk.history() == first && node.disk.applied() == first.len());
        let committed = self.externalised.len() == first.len();
        voters == self.register.group.in_sync.len() && all_acked && equal && committed
    }

    /// The final state against everything that was acknowledged on the way.
    pub(crate) fn check_acknowledged(&mut self) {
        self.check_log_matching();
        let log = self.nodes[0].disk.history();
        for (id, fate) in &self.operations {
            let Fate::Acked(seqno) = fate else { panic!("operation {id} was never acknowledged") };
            let found: Vec<_> = log.iter().filter(|entry| entry.operation_id == *id).map(|entry| entry.seqno).collect();
            assert_eq!(found, [*seqno], "operation {id}");
        }
        let operations = self.operations.len() as u64;
        *self.counts.entry("operation").or_default() += operations;
    }
}
