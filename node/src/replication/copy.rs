//! The task that owns one copy's core: it carries out the core's actions and reports what came of them.
//!
//! The disk and the other copies work in parallel: entries travel while the own fsync runs, writes that arrive during an fsync
//! share the next one, and applying is a job of its own. At a time a copy has at most one persist, one apply and one lookup job, and
//! one message under way to each peer. Nothing here decides anything about the protocol.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cluster_config::ids::{Incarnation, OperationId};
use cluster_config::limits::{APPEND_BYTES_MAX, APPEND_ENTRIES_MAX, COPY_MAILBOX_MAX};
use cluster_config::operation::Operation;
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use cluster_config::shard_group::ShardGroup;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::core::{Core, CoreOptions, Timing};
use super::error::ReplicationError;
use super::handle::{CopyHandle, Identity, Message, Status};
use super::messages::{Action, Append, AppendResult, Event, ProposalOutcome, RequestId, SendAppend, WriteAck};
use super::open::open;
use super::pool::{Lane, StoragePool};
use super::recent::Recent;
use super::storage::{CopyStorage, EncodedEntry, LogWrite, StorageError};
use super::transport::{RegisterClient, ReplicationTransport, TransportError};
use proto::convert::operation::encode_payload;

/// How often the core is told the time; fine enough for the shortest pause it keeps.
const TICK: Duration = Duration::from_millis(100);
/// Messages taken from the mailbox before finished jobs are looked at again.
const MESSAGES_PER_TURN: usize = 64;
/// A link and a disk that move less than this count as broken. Without it the largest entry could never reach a copy that takes longer for
/// it than the timeout for small ones.
const SLOWEST_BYTES_PER_SECOND: f64 = 2.0 * 1024.0 * 1024.0;
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
            stored,
            term_starts: opened.term_starts,
            unapplied: opened.unapplied,
            barrier_payload: encode_payload(vec![Operation::Barrier]),
        });
        let started = Instant::now();
        let (mailbox, messages) = mpsc::channel(COPY_MAILBOX_MAX);
        let (group, learned) = watch::channel(None);
        let (publish, status) = watch::channel(status_of(&core, started));
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
            persist: Persist::default(),
            lookups: Lookups::default(),
            apply: Apply { is_running: false, target: stored.applied.seqno },
            disk: JoinSet::new(),
            network: JoinSet::new(),
        };
        tokio::spawn(task.run(messages, learned, closing.clone()));
        Ok(Self { identity, mailbox, group: Arc::new(group), status, closing })
    }
}

/// What a finished job has to tell.
enum Done {
    Persisted { write_id: u64, result: Result<(), StorageError> },
    LookedUp { term: PrimaryTerm, result: Result<Vec<(OperationId, Option<SeqNo>)>, StorageError> },
    Applied(Result<SeqNo, StorageError>),
    Read { send: SendAppend, result: Result<Vec<EncodedEntry>, StorageError> },
    Replied { send: SendAppend, result: Result<AppendResult, TransportError> },
    Proposed { id: u64, result: Result<ProposalOutcome, TransportError> },
    RegisterRead(Result<ShardGroup, TransportError>),
}

/// Writes that wait for the fsync under way; they share the next one.
#[derive(Default)]
struct Persist {
    is_running: bool,
    queued: Option<(u64, LogWrite)>,
}

/// Operation ids to look up, all of one term.
#[derive(Default)]
struct Lookups {
    is_running: bool,
    queued: Vec<OperationId>,
    term: PrimaryTerm,
}

struct Apply {
    is_running: bool,
    target: SeqNo,
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
    persist: Persist,
    lookups: Lookups,
    apply: Apply,
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
                _ = ticks.tick() => self.step(Event::Tick(self.started.elapsed().as_millis() as u64)),
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
            Action::Propose(proposal) => {
                tracing::info!(shard = %self.identity.shard, copy = %self.identity.copy, change = ?proposal.change, "asks metadata");
                let (register, id, patience) = (Arc::clone(&self.options.register), proposal.id, self.patience());
                self.network.spawn(async move {
                    let result = timeout(patience, register.propose(proposal)).await;
                    Done::Proposed { id, result: result.unwrap_or_else(|_| Err(no_answer(patience))) }
                });
            }
            Action::ReadRegister => {
                let (register, shard, patience) =
                    (Arc::clone(&self.options.register), self.identity.shard, self.patience());
                self.network.spawn(async move {
                    let result = timeout(patience, register.read_register(shard)).await;
                    Done::RegisterRead(result.unwrap_or_else(|_| Err(no_answer(patience))))
                });
            }
        }
    }

    fn answer_write(&mut self, request: RequestId, answer: Result<WriteAck, ReplicationError>) {
        if let Some(reply) = self.writes.remove(&request) {
            // A writer whose deadline passed has gone; it knows that the outcome is unknown.
            let _ = reply.send(answer);
        }
    }

    /// Longest wait for any answer from outside: by then W9 gives the copy up anyway.
    fn patience(&self) -> Duration {
        Duration::from_millis(self.options.timing.ack_timeout_ms)
    }

    fn start_persist(&mut self) {
        if self.persist.is_running || self.core.poisoned().is_some() {
            return;
        }
        let Some((write_id, write)) = self.persist.queued.take() else { return };
        self.persist.is_running = true;
        let (pool, storage) = (self.options.pool.clone(), Arc::clone(&self.options.storage));
        self.disk.spawn(async move {
            Done::Persisted { write_id, result: pool.run(Lane::Log, move || storage.persist(write)).await }
        });
    }

    fn start_lookups(&mut self) {
        if self.lookups.is_running || self.lookups.queued.is_empty() {
            return;
        }
        self.lookups.is_running = true;
        let (ids, term) = (std::mem::take(&mut self.lookups.queued), self.lookups.term);
        let (pool, storage) = (self.options.pool.clone(), Arc::clone(&self.options.storage));
        self.disk.spawn(async move {
            let look_up = move || ids.into_iter().map(|id| Ok((id, storage.find_operation(id)?))).collect();
            Done::LookedUp { term, result: pool.run(Lane::Log, look_up).await }
        });
    }

    fn start_apply(&mut self) {
        let (from, target) = (self.core.applied().next(), self.apply.target);
        if self.apply.is_running || from > target || self.core.poisoned().is_some() {
            return;
        }
        self.apply.is_running = true;
        let cached = self.recent.slice(from, target);
        let (pool, storage) = (self.options.pool.clone(), Arc::clone(&self.options.storage));
        let apply = move || {
            let mut entries = match cached {
                Some(entries) => entries,
                None => read_from(&*storage, from)?,
            };
            entries.retain(|entry| entry.seqno <= target);
            storage.apply(&entries)?;
            Ok(entries.last().map_or(from, |entry| entry.seqno))
        };
        self.disk.spawn(async move { Done::Applied(pool.run(Lane::Apply, apply).await) });
    }

    fn send_append(&mut self, send: SendAppend) {
        let from = send.prev.seqno.next();
        if from > send.up_to {
            return self.transmit(send, Vec::new());
        }
        if let Some(entries) = self.recent.slice(from, send.up_to) {
            return self.transmit(send, entries);
        }
        let (pool, storage) = (self.options.pool.clone(), Arc::clone(&self.options.storage));
        self.disk.spawn(async move {
            Done::Read { send, result: pool.run(Lane::Log, move || read_from(&*storage, from)).await }
        });
    }

    /// Sends entries that were taken from the log of this very term.
    fn transmit(&mut self, send: SendAppend, mut entries: Vec<EncodedEntry>) {
        entries.retain(|entry| entry.seqno <= send.up_to);
        let append = Append {
            shard: self.identity.shard,
            to_copy: send.to,
            from_copy: self.identity.copy,
            lineage: self.identity.lineage,
            term: send.term,
            cfg_version: send.cfg_version,
            prev: send.prev,
            entries,
            global_checkpoint: send.global_checkpoint,
        };
        let bytes: usize = append.entries.iter().map(|entry| entry.payload.len()).sum();
        let patience = self.patience() + Duration::from_secs_f64(bytes as f64 / SLOWEST_BYTES_PER_SECOND);
        let transport = Arc::clone(&self.options.transport);
        self.network.spawn(async move {
            let result = timeout(patience, transport.append(send.node, append)).await;
            Done::Replied { send, result: result.unwrap_or_else(|_| Err(no_answer(patience))) }
        });
    }

    fn finish(&mut self, done: Result<Done, JoinError>) {
        let done = match done {
            Ok(done) => done,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return,
        };
        match done {
            Done::Persisted { write_id, result } => {
                self.persist.is_running = false;
                self.step(result.map_or_else(Event::StorageFailed, |()| Event::Persisted(write_id)));
                self.start_persist();
            }
            Done::LookedUp { term, result } => {
                self.lookups.is_running = false;
                match result {
                    Ok(found) => found.into_iter().for_each(|(operation_id, seqno)| {
                        self.step(Event::OperationLookedUp { operation_id, term, seqno });
                    }),
                    Err(error) => self.step(Event::StorageFailed(error)),
                }
                self.start_lookups();
            }
            Done::Applied(result) => {
                self.apply.is_running = false;
                self.step(result.map_or_else(Event::StorageFailed, Event::Applied));
                self.start_apply();
            }
            Done::Read { send, result } => match result {
                // The log may have been cut since, if the role was lost.
                Ok(_) if !self.core.is_primary_in(send.term) => {}
                Ok(entries) => self.transmit(send, entries),
                Err(error) => self.step(Event::StorageFailed(error)),
            },
            Done::Replied { send, result } => self.step(match result {
                Ok(result) => Event::AppendReplied { append_id: send.append_id, result },
                Err(error) => {
                    tracing::debug!(shard = %self.identity.shard, to = %send.node, %error, "append failed");
                    Event::AppendFailed { to: send.to, append_id: send.append_id }
                }
            }),
            Done::Proposed { id, result } => {
                if let Ok(ProposalOutcome { accepted: false, reason, .. }) = &result {
                    tracing::info!(shard = %self.identity.shard, reason, "metadata refused");
                }
                self.step(Event::ProposalAnswered { id, outcome: result.ok() });
            }
            Done::RegisterRead(result) => self.step(Event::RegisterRead(result.ok().map(Arc::new))),
        }
    }

    fn publish(&self) {
        let now = status_of(&self.core, self.started);
        self.status.send_if_modified(|status| {
            let is_changed = *status != now;
            *status = now;
            is_changed
        });
    }
}

fn status_of(core: &Core, started: Instant) -> Status {
    Status {
        term: core.confirmed_term(),
        is_primary: core.is_primary(),
        last: core.last(),
        local_checkpoint: core.local_checkpoint(),
        global_checkpoint: core.global_checkpoint(),
        applied: core.applied(),
        heard: core.heard_ms().map(|heard_ms| started + Duration::from_millis(heard_ms)),
        poisoned: core.poisoned().map(ToString::to_string),
        needing_snapshot: core.needing_snapshot(),
    }
}

/// Entries that must be there, as many as one message may carry.
fn read_from(storage: &dyn CopyStorage, from: SeqNo) -> Result<Vec<EncodedEntry>, StorageError> {
    let entries = storage.read(from, APPEND_ENTRIES_MAX, APPEND_BYTES_MAX)?;
    match entries.first() {
        Some(first) if first.seqno == from => Ok(entries),
        _ => Err(StorageError::Corrupt(format!("durable entry {from} is missing"))),
    }
}

fn no_answer(patience: Duration) -> TransportError {
    TransportError(format!("nothing within {} ms", patience.as_millis()))
}
