//! The task that owns one copy's core: it carries out the core's actions and reports what came of them.
//!
//! The disk and the other copies work in parallel: entries travel while the own fsync runs, writes that arrive during an fsync
//! share the next one, and applying is a job of its own. At a time a copy has at most one persist, one apply and one lookup job, and
//! one message under way to each peer. Nothing here decides anything about the protocol.

mod jobs;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cluster_config::ids::Incarnation;
use cluster_config::limits::COPY_MAILBOX_MAX;
use cluster_config::operation::Operation;
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use cluster_config::shard_group::ShardGroup;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use self::jobs::{Apply, Done, Housekeeping, Lookups, Persist};

use super::core::{Core, CoreOptions, Timing};
use super::error::ReplicationError;
use super::handle::{CopyHandle, Identity, Message, Status};
use super::messages::{Action, AppendResult, Event, RequestId, WriteAck};
use super::open::open;
use super::pool::{Lane, StoragePool};
use super::recent::Recent;
use super::retention::Retention;
use super::storage::{CopyStorage, StorageError};
use super::transport::{RegisterClient, ReplicationTransport};
use proto::convert::operation::encode_payload;

/// How often the core is told the time; fine enough for the shortest pause it keeps.
const TICK: Duration = Duration::from_millis(100);
/// Messages taken from the mailbox before finished jobs are looked at again.
const MESSAGES_PER_TURN: usize = 64;
/// A usual [`CopyOptions::drain_timeout`].
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// What a copy needs to run.
pub struct CopyOptions {
    /// Its disk. Nobody else writes to it while the copy is open.
    pub storage: Arc<dyn CopyStorage>,
    /// This life of the process, as metadata registered it (W1).
    pub incarnation: Incarnation,
    /// Timeouts.
    pub timing: Timing,
    /// How much of the log is kept.
    pub retention: Retention,
    /// Where the disk's calls run.
    pub pool: StoragePool,
    /// To the other copies.
    pub transport: Arc<dyn ReplicationTransport>,
    /// To the metadata group.
    pub register: Arc<dyn RegisterClient>,
    /// How long closing waits for the writes under way.
    pub drain_timeout: Duration,
    /// Whether invariants are checked after each step (`SUSUI_CHECK=1`).
    pub check: bool,
}

impl CopyHandle {
    /// Opens a copy: it starts as a follower and takes part once [`CopyHandle::reconfigure`] tells it the register. Its task runs
    /// until [`CopyHandle::close`]. Errors: whatever the disk says.
    pub async fn open(options: CopyOptions) -> Result<Self, ReplicationError> {
        let storage = Arc::clone(&options.storage);
        let opened = options.pool.run(Lane::Log, move || open(&*storage)).await?;
        let stored = opened.stored;
        let identity = Identity {
            copy: stored.copy,
            shard: stored.shard,
            lineage: stored.lineage,
            incarnation: options.incarnation,
        };
        let core = Core::new(CoreOptions {
            incarnation: options.incarnation,
            timing: options.timing,
            retention: options.retention,
            stored,
            term_starts: opened.term_starts,
            unapplied: opened.unapplied,
            barrier_payload: encode_payload(vec![Operation::Barrier]),
        });
        let started = Instant::now();
        let (mailbox, messages) = mpsc::channel(COPY_MAILBOX_MAX);
        let (group, learned) = watch::channel(None);
        let (publish, status) = watch::channel(status_of(&core, started, 0));
        let closing = CancellationToken::new();
        let task = CopyTask {
            identity,
            core,
            options,
            started,
            recent: Recent::default(),
            status: publish,
            next_request: 0,
            writes: HashMap::new(),
            appends: HashMap::new(),
            reads: HashMap::new(),
            hand_offs: HashMap::new(),
            persist: Persist::default(),
            lookups: Lookups::default(),
            apply: Apply { is_running: false, target: stored.applied.seqno },
            housekeeping: Housekeeping::new(stored.floor, started),
            disk: JoinSet::new(),
            network: JoinSet::new(),
        };
        tokio::spawn(task.run(messages, learned, closing.clone()));
        Ok(Self { identity, mailbox, group: Arc::new(group), status, closing })
    }
}

struct CopyTask {
    identity: Identity,
    core: Core,
    options: CopyOptions,
    started: Instant,
    recent: Recent,
    status: watch::Sender<Status>,
    next_request: u64,
    writes: HashMap<RequestId, oneshot::Sender<Result<WriteAck, ReplicationError>>>,
    appends: HashMap<RequestId, oneshot::Sender<AppendResult>>,
    reads: HashMap<RequestId, oneshot::Sender<Result<SeqNo, ReplicationError>>>,
    hand_offs: HashMap<RequestId, oneshot::Sender<Result<(), ReplicationError>>>,
    persist: Persist,
    lookups: Lookups,
    apply: Apply,
    housekeeping: Housekeeping,
    /// Jobs that use the storage: waited for before the copy counts as closed.
    disk: JoinSet<Done>,
    /// Jobs that may be dropped at any time.
    network: JoinSet<Done>,
}

impl CopyTask {
    async fn run(
        mut self,
        mut messages: mpsc::Receiver<Message>,
        mut learned: watch::Receiver<Option<Arc<ShardGroup>>>,
        closing: CancellationToken,
    ) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drain_until: Option<Instant> = None;
        loop {
            tokio::select! {
                Some(done) = self.disk.join_next(), if !self.disk.is_empty() => self.finish(done),
                Some(done) = self.network.join_next(), if !self.network.is_empty() => self.finish(done),
                message = messages.recv() => match message {
                    Some(message) => self.take(message, &mut messages, drain_until.is_some()),
                    // Every handle is gone: nobody can ask or feed this copy any more.
                    None => break,
                },
                Ok(()) = learned.changed() => {
                    let group = learned.borrow_and_update().clone();
                    if let Some(group) = group {
                        self.step(Event::Reconfigured(group));
                    }
                }
                _ = ticks.tick() => {
                    self.step(Event::Tick(self.started.elapsed().as_millis() as u64));
                    self.start_housekeeping();
                }
                () = closing.cancelled(), if drain_until.is_none() => drain_until = Some(Instant::now() + self.options.drain_timeout),
            }
            self.recent.evict(self.core.local_checkpoint(), self.core.needed_by_nobody());
            if drain_until.is_some_and(|until| self.core.writes_waiting() == 0 || Instant::now() >= until) {
                break;
            }
        }
        self.network.abort_all();
        // What the disk began it finishes, so that whoever closes the storage next finds it idle.
        while self.disk.join_next().await.is_some() {}
        self.keep_last_floor().await;
    }

    fn take(&mut self, first: Message, messages: &mut mpsc::Receiver<Message>, is_closing: bool) {
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(message) = next {
            self.next_request += 1;
            let request = RequestId(self.next_request);
            match message {
                Message::Write { reply, .. } if is_closing => drop(reply.send(Err(ReplicationError::Unavailable))),
                Message::Write { operation_id, payload, reply } => {
                    self.writes.insert(request, reply);
                    self.step(Event::Write { request, operation_id, payload });
                }
                Message::Append { append, reply } => {
                    self.appends.insert(request, reply);
                    self.step(Event::AppendReceived { request, append });
                }
                Message::Confirm { reply } => {
                    let term = if self.core.poisoned().is_some() { PrimaryTerm(0) } else { self.core.confirmed_term() };
                    // The asker may have gone.
                    let _ = reply.send(term);
                }
                Message::StrongRead { reply } => {
                    self.reads.insert(request, reply);
                    self.step(Event::StrongRead { request });
                }
                Message::HandOff { to, patience_ms, reply } => {
                    self.hand_offs.insert(request, reply);
                    self.step(Event::HandOff { request, to, patience_ms });
                }
                Message::PinLog { from, for_ms } => self.step(Event::PinLog { from, for_ms }),
            }
            taken += 1;
            next = if taken < MESSAGES_PER_TURN { messages.try_recv().ok() } else { None };
        }
    }

    fn step(&mut self, event: Event) {
        let was_poisoned = self.core.poisoned().is_some();
        let actions = self.core.step(event);
        // Before any answer goes out: who was acknowledged must find the position that says so.
        self.publish();
        actions.into_iter().for_each(|action| self.perform(action));
        if self.options.check
            && let Err(problem) = self.core.check()
            && !was_poisoned
        {
            tracing::error!(shard = %self.identity.shard, copy = %self.identity.copy, problem, "replication invariant broken");
            let broken = StorageError::Corrupt(format!("replication invariant broken: {problem}"));
            let actions = self.core.step(Event::StorageFailed(broken));
            self.publish();
            actions.into_iter().for_each(|action| self.perform(action));
        }
        if let (false, Some(error)) = (was_poisoned, self.core.poisoned()) {
            tracing::error!(shard = %self.identity.shard, copy = %self.identity.copy, %error, "copy is out of use until reopened");
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Persist { write_id, write } => {
                self.recent.record(&write);
                match &mut self.persist.queued {
                    Some((last_id, queued)) => {
                        *last_id = write_id;
                        queued.merge(write);
                    }
                    none => *none = Some((write_id, write)),
                }
                self.start_persist();
            }
            Action::SendAppend(send) => self.send_append(send),
            Action::ReplyAppend { request, result } => {
                if let Some(reply) = self.appends.remove(&request) {
                    // A primary that gave up waiting asks again.
                    let _ = reply.send(result);
                }
            }
            Action::ApplyUpTo(target) => {
                self.apply.target = target;
                self.start_apply();
            }
            Action::FindOperation { operation_id, term } => {
                if self.lookups.term != term {
                    self.lookups.queued.clear();
                    self.lookups.term = term;
                }
                self.lookups.queued.push(operation_id);
                self.start_lookups();
            }
            Action::AckWrite { request, ack } => self.answer_write(request, Ok(ack)),
            Action::RefuseWrite { request, refusal } => {
                let register = self.core.group().map(|group| &**group);
                let error = ReplicationError::from_refusal(refusal, register);
                self.answer_write(request, Err(error));
            }
            Action::Propose(proposal) => self.propose(proposal),
            Action::ReadRegister => self.read_register(),
            Action::Purge(up_to) => {
                self.housekeeping.purge = Some(up_to);
                self.start_housekeeping();
            }
            Action::SendConfirm(send) => self.send_confirm(send),
            Action::ServeRead { request, seqno } => self.answer_read(request, Ok(seqno)),
            Action::RefuseRead { request, refusal } => {
                let register = self.core.group().map(|group| &**group);
                self.answer_read(request, Err(ReplicationError::from_read_refusal(refusal, register)));
            }
            Action::EndHandOff { request, result } => {
                let register = self.core.group().map(|group| &**group);
                let result = result.map_err(|refusal| ReplicationError::from_hand_off_refusal(refusal, register));
                if let Some(reply) = self.hand_offs.remove(&request) {
                    // Whoever asked may have gone.
                    let _ = reply.send(result);
                }
            }
        }
    }

    fn answer_read(&mut self, request: RequestId, answer: Result<SeqNo, ReplicationError>) {
        if let Some(reply) = self.reads.remove(&request) {
            // A reader whose deadline passed has gone.
            let _ = reply.send(answer);
        }
    }

    fn answer_write(&mut self, request: RequestId, answer: Result<WriteAck, ReplicationError>) {
        if let Some(reply) = self.writes.remove(&request) {
            // A writer whose deadline passed has gone; it knows that the outcome is unknown.
            let _ = reply.send(answer);
        }
    }

    fn publish(&self) {
        let now = status_of(&self.core, self.started, self.recent.bytes());
        self.status.send_if_modified(|status| {
            let is_changed = *status != now;
            *status = now;
            is_changed
        });
    }
}

fn status_of(core: &Core, started: Instant, recent_bytes: usize) -> Status {
    Status {
        group: core.group().cloned(),
        term: core.confirmed_term(),
        is_primary: core.is_primary(),
        last: core.last(),
        local_checkpoint: core.local_checkpoint(),
        global_checkpoint: core.global_checkpoint(),
        applied: core.applied(),
        current_as_of: core.current_as_of_ms().map(|ms| started + Duration::from_millis(ms)),
        poisoned: core.poisoned().cloned(),
        needing_snapshot: core.needing_snapshot(),
        needs_snapshot: core.needs_snapshot(),
        pinned: core.pinned(),
        recent_bytes,
    }
}
