//! One shard's whole world as a value: copies that run the real core, their disks, the messages between them, and the metadata
//! state, changed by the real `apply`. A [`Step`] is one thing that happens; which ones can is [`World::steps`].

mod happen;
mod lives;
mod register;
mod steps;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use cluster_config::cluster_state::ClusterState;
use cluster_config::ids::{CollectionId, CopyId, Incarnation, Lineage, NodeId, OperationId, ShardId};
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use cluster_config::shard_group::{CopyPhase, CopyRecord, CopyRole, ShardGroup};

use self::lives::opened;
use super::disk::Disk;
use super::oracle::Oracle;
use crate::metadata::state::State;
use crate::replication::core::{Core, Timing};
use crate::replication::messages::{Append, AppendResult, Proposal, ProposalOutcome, RequestId};
use crate::replication::mutant::Mutant;
use crate::replication::storage::{EncodedEntry, LogWrite};

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

/// Nothing may happen any more but what is under way.
pub(super) const NOTHING: Bounds = Bounds {
    writes: 0,
    grants: 0,
    expiries: 0,
    crashes: 0,
    disk_failures: 0,
    losses: 0,
    repeats: 0,
    ticks: 0,
    reads: 0,
    hand_offs: 0,
};

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
    /// Hand-offs that metadata agreed to.
    pub(super) hand_offs_done: u8,
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
    Learn {
        copy: usize,
        version: usize,
    },
    /// The oldest so many writes share an fsync.
    Sync {
        copy: usize,
        writes: usize,
    },
    /// Entries are applied up to here.
    Apply {
        copy: usize,
        up_to: SeqNo,
    },
    /// An answer to a lookup arrives: what was found when it was asked (`early`), or what is found now.
    LookUp {
        copy: usize,
        early: bool,
    },
    /// A message arrives; `cut` entries fewer were sent than could be. With `keep` it will arrive again.
    Deliver {
        mail: usize,
        keep: bool,
        cut: usize,
    },
    /// A message is lost, which its sender notices sooner or later.
    Lose {
        mail: usize,
    },
    /// The sender stops waiting, yet the message is still under way.
    GiveUp {
        mail: usize,
    },
    Write {
        copy: usize,
        operation: OperationId,
    },
    Tick {
        copy: usize,
    },
    /// The process dies and comes back; so many of the writes under way, and all but so many applied entries, have survived.
    Crash {
        copy: usize,
        kept: usize,
        unapplied: usize,
    },
    FailDisk {
        copy: usize,
    },
    /// A copy whose disk failed is opened again in the same process.
    Reopen {
        copy: usize,
        kept: usize,
    },
    /// Metadata grants the role; `drop` takes the former primary out of the in-sync set.
    Grant {
        copy: usize,
        drop: bool,
    },
    Expire {
        copy: usize,
    },
    Read {
        copy: usize,
    },
    HandOff {
        copy: usize,
        to: usize,
    },
    /// A copy that the log cannot help becomes a snapshot of another.
    Fetch {
        copy: usize,
        from: usize,
    },
}

impl World {
    /// Copy 1 is granted the role; nothing else has happened.
    pub(super) fn new(setting: Setting, bounds: Bounds) -> Self {
        let phase = |copy| if copy <= setting.in_sync { CopyPhase::InSync } else { CopyPhase::CatchingUp };
        let record =
            |copy| (CopyId(copy), CopyRecord { node: NodeId(copy), role: CopyRole::Voter, phase: phase(copy) });
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
            hand_offs_done: 0,
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
            | Mail::Confirmed { to, life, .. } => to == copy && life != current,
        }
    }
}
