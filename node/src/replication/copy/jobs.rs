//! The jobs of a copy's task: started here, and what came of them reported to the core.

use std::sync::Arc;
use std::time::Duration;

use cluster_config::ids::{CopyId, OperationId};
use cluster_config::limits::{APPEND_BYTES_MAX, APPEND_ENTRIES_MAX};
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use cluster_config::shard_group::ShardGroup;
use tokio::task::JoinError;
use tokio::time::{Instant, timeout};

use super::CopyTask;
use crate::replication::messages::{
    Append, AppendResult, Confirm, Event, Proposal, ProposalOutcome, SendAppend, SendConfirm,
};
use crate::replication::pool::Lane;
use crate::replication::storage::{CopyStorage, EncodedEntry, LogWrite, StorageError};
use crate::replication::transport::TransportError;

/// A link and a disk that move less than this count as broken. Without it the largest entry could never reach a copy that takes longer for
/// it than the timeout for small ones.
const SLOWEST_BYTES_PER_SECOND: f64 = 2.0 * 1024.0 * 1024.0;

/// What a finished job has to tell.
pub(super) enum Done {
    Persisted { write_id: u64, result: Result<(), StorageError> },
    LookedUp { term: PrimaryTerm, result: Result<Vec<(OperationId, Option<SeqNo>)>, StorageError> },
    Applied(Result<SeqNo, StorageError>),
    Read { send: SendAppend, result: Result<Vec<EncodedEntry>, StorageError> },
    Replied { send: SendAppend, result: Result<AppendResult, TransportError> },
    Proposed { id: u64, result: Result<ProposalOutcome, TransportError> },
    RegisterRead(Result<ShardGroup, TransportError>),
    Confirmed { round: u64, copy: CopyId, result: Result<PrimaryTerm, TransportError> },
    Housekept(Result<(), StorageError>),
}

/// Writes that wait for the fsync under way; they share the next one.
#[derive(Default)]
pub(super) struct Persist {
    pub(super) is_running: bool,
    pub(super) queued: Option<(u64, LogWrite)>,
}

/// Operation ids to look up, all of one term.
#[derive(Default)]
pub(super) struct Lookups {
    pub(super) is_running: bool,
    pub(super) queued: Vec<OperationId>,
    pub(super) term: PrimaryTerm,
}

pub(super) struct Apply {
    pub(super) is_running: bool,
    pub(super) target: SeqNo,
}

/// What the disk is told now and then: how far the log may go, and how far it is known to be committed.
pub(super) struct Housekeeping {
    is_running: bool,
    pub(super) purge: Option<SeqNo>,
    floor: SeqNo,
    floor_kept_at: Instant,
}

impl Housekeeping {
    pub(super) fn new(floor: SeqNo, now: Instant) -> Self {
        Self { is_running: false, purge: None, floor, floor_kept_at: now }
    }
}

impl CopyTask {
    /// Longest wait for any answer from outside: by then W9 gives the copy up anyway.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(self.options.timing.ack_timeout_ms)
    }

    pub(super) fn start_persist(&mut self) {
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

    pub(super) fn start_lookups(&mut self) {
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

    pub(super) fn start_apply(&mut self) {
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

    /// Purges what the core let go of, and remembers the floor once per heartbeat, if it moved.
    pub(super) fn start_housekeeping(&mut self) {
        let work = &mut self.housekeeping;
        if work.is_running || self.core.poisoned().is_some() {
            return;
        }
        let is_due = work.floor_kept_at.elapsed().as_millis() as u64 >= self.options.timing.heartbeat_ms;
        let floor = Some(self.core.global_checkpoint()).filter(|floor| is_due && *floor > work.floor);
        let purge = work.purge.take();
        if floor.is_none() && purge.is_none() {
            return;
        }
        work.is_running = true;
        if let Some(floor) = floor {
            (work.floor, work.floor_kept_at) = (floor, Instant::now());
        }
        let (pool, storage) = (self.options.pool.clone(), Arc::clone(&self.options.storage));
        let keep_house = move || {
            floor.map_or(Ok(()), |floor| storage.keep_floor(floor))?;
            purge.map_or(Ok(()), |up_to| storage.purge(up_to))
        };
        self.disk.spawn(async move { Done::Housekept(pool.run(Lane::Log, keep_house).await) });
    }

    /// The last word to the disk, so that what a clean end leaves behind is checked in full at the next opening.
    pub(super) async fn keep_last_floor(&self) {
        let floor = self.core.global_checkpoint();
        if self.core.poisoned().is_some() || floor <= self.housekeeping.floor {
            return;
        }
        let storage = Arc::clone(&self.options.storage);
        if let Err(error) = self.options.pool.run(Lane::Log, move || storage.keep_floor(floor)).await {
            tracing::warn!(shard = %self.identity.shard, copy = %self.identity.copy, %error, "floor not kept");
        }
    }

    pub(super) fn propose(&mut self, proposal: Proposal) {
        tracing::info!(shard = %self.identity.shard, copy = %self.identity.copy, change = ?proposal.change, "asks metadata");
        let (register, id, patience) = (Arc::clone(&self.options.register), proposal.id, self.patience());
        self.network.spawn(async move {
            let result = timeout(patience, register.propose(proposal)).await;
            Done::Proposed { id, result: result.unwrap_or_else(|_| Err(no_answer(patience))) }
        });
    }

    pub(super) fn read_register(&mut self) {
        let (register, shard, patience) = (Arc::clone(&self.options.register), self.identity.shard, self.patience());
        self.network.spawn(async move {
            let result = timeout(patience, register.read_register(shard)).await;
            Done::RegisterRead(result.unwrap_or_else(|_| Err(no_answer(patience))))
        });
    }

    pub(super) fn send_confirm(&mut self, send: SendConfirm) {
        let confirm = Confirm {
            shard: self.identity.shard,
            to_copy: send.to,
            lineage: self.identity.lineage,
            cfg_version: send.cfg_version,
            term: send.term,
        };
        let (transport, patience) = (Arc::clone(&self.options.transport), self.patience());
        self.network.spawn(async move {
            let result = timeout(patience, transport.confirm(send.node, confirm)).await;
            let result = result.unwrap_or_else(|_| Err(no_answer(patience)));
            Done::Confirmed { round: send.round, copy: send.to, result }
        });
    }

    pub(super) fn send_append(&mut self, send: SendAppend) {
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
    pub(super) fn transmit(&mut self, send: SendAppend, mut entries: Vec<EncodedEntry>) {
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
            log_start: send.log_start,
            age_ms: send.age_ms,
        };
        let bytes: usize = append.entries.iter().map(|entry| entry.payload.len()).sum();
        let patience = self.patience() + Duration::from_secs_f64(bytes as f64 / SLOWEST_BYTES_PER_SECOND);
        let transport = Arc::clone(&self.options.transport);
        self.network.spawn(async move {
            let result = timeout(patience, transport.append(send.node, append)).await;
            Done::Replied { send, result: result.unwrap_or_else(|_| Err(no_answer(patience))) }
        });
    }

    pub(super) fn finish(&mut self, done: Result<Done, JoinError>) {
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
                // Let go of in the meantime; the core knows.
                Err(_) if send.prev.seqno < self.core.purged() => {
                    self.step(Event::AppendFailed { to: send.to, append_id: send.append_id });
                }
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
            Done::Confirmed { round, copy, result } => self.step(match result {
                Ok(term) => Event::ConfirmReplied { round, copy, term },
                Err(_) => Event::ConfirmFailed { round, copy },
            }),
            Done::Housekept(result) => {
                self.housekeeping.is_running = false;
                if let Err(error) = result {
                    self.step(Event::StorageFailed(error));
                }
                self.start_housekeeping();
            }
        }
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
