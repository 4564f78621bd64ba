//! A whole group of copies in one thread: cores, disks, a network that loses, repeats and reorders, and a register.
//!
//! Everything random comes from one seed. First anything goes wrong (`run_chaos`), then nothing does (`heal`); after each step the
//! `oracles` must hold. Each other file is one subject: what `client`, `network` and `disks` do, how processes end and begin again
//! (`lives`), and which harm is done to networks (`cuts`) and disks (`damage`).

mod client;
mod cuts;
mod damage;
mod disks;
mod lives;
mod network;
mod oracles;
mod reads;
mod snapshots;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use cluster_config::ids::{CopyId, Incarnation, OperationId};
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use node::replication::Retention;
use node::replication::core::Core;
use node::replication::messages::{Action, Event, RequestId};
use node::replication::storage::{EncodedEntry, LogWrite, StorageError};

use self::client::Fate;
use self::cuts::Cut;
use self::network::Mail;
use self::reads::Calls;
use super::Rng;
use super::disk::SimDisk;
use super::register::{Register, SHARD};

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
    /// An entry that was to be sent could not be read; the core is yet to be told.
    unreadable: Option<StorageError>,
    /// Its disk was found damaged: the copy is of no use until another is built in its place.
    is_condemned: bool,
    /// Its log was compared with the externalised entries up to here.
    compared: usize,
}

const CHAOS_STEPS: usize = 3000;

/// Copies that take the place of others get ids so much higher.
const COPIES_MAX: u64 = 100;

/// The node of a copy.
fn node_of(copy: CopyId) -> usize {
    ((copy.0 - 1) % COPIES_MAX) as usize
}

/// How much goes wrong, in percent of the chances. Drawn per run, so that each kind of fault is sometimes rare and sometimes common.
struct Chaos {
    lose: u64,
    repeat: u64,
    crash: u64,
    failover: u64,
    poison: u64,
    cut: u64,
    /// Disks fill up, and bits turn.
    damage: u64,
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
    /// Of copies that others were built in place of: what they acknowledged was true at the time.
    lost_disks: Vec<Arc<SimDisk>>,
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
    counts: BTreeMap<&'static str, u64>,
    steps: u64,
}

impl Group {
    /// A whole run: anything may happen, then nothing does, and then the copies must be equal and true to what was acknowledged. Returns
    /// how often what happened.
    pub(crate) fn run(seed: u64) -> BTreeMap<&'static str, u64> {
        let mut group = Self::new(seed);
        group.run_chaos(CHAOS_STEPS);
        group.heal();
        group.check_acknowledged();
        group.counts
    }

    fn new(seed: u64) -> Self {
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
            damage: level(&mut rng, [0, 10, 50]),
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
            unreadable: None,
            is_condemned: false,
            compared: 0,
        };
        let mut group = Self {
            rng,
            now_ms: 0,
            chaos,
            register: Register::new(voters, copies, in_sync, min_in_sync),
            nodes: (1..=copies).map(node).collect(),
            lost_disks: Vec::new(),
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
                if let Some(append) = self.append_of(node, send) {
                    let to = node_of(send.to);
                    self.mail.push(Mail::Append { from: node, life, append_id: send.append_id, to, append });
                }
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

    // ---- phases ------------------------------------------------------------------------------------------------------------

    /// Anything may happen.
    fn run_chaos(&mut self, steps: usize) {
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
                93 if self.rng.percent(self.chaos.damage) => self.fill_or_free(node),
                94 if self.rng.percent(self.chaos.damage) => self.rot(node),
                92 | 93 if self.rng.percent(self.chaos.calls) => self.call(node),
                98 if self.rng.percent(self.chaos.failover / 2) => {
                    let copy = self.nodes[node].copy;
                    self.register.expire(copy);
                }
                98 => self.replace_condemned(node),
                99 if self.rng.percent(self.chaos.poison) => self.poison_and_reopen(node),
                _ => {}
            }
            self.spare_the_last();
            self.check();
        }
    }

    fn call(&mut self, node: usize) {
        match self.rng.below(10) {
            0..=2 => self.hand_off(node),
            _ => self.fetch_snapshot(node),
        }
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
    fn heal(&mut self) {
        self.cut = None;
        for node in 0..self.nodes.len() {
            self.nodes[node].disk.fail_with(None);
            if self.nodes[node].core.as_ref().is_some_and(|core| core.poisoned().is_some()) {
                self.crash(node);
            }
            if self.nodes[node].core.is_none() {
                self.restart(node);
            }
            self.scrub(node);
        }
        for _ in 0..600 {
            self.now_ms += 100;
            self.spare_the_last();
            (0..self.nodes.len()).for_each(|node| self.replace_condemned(node));
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
}
