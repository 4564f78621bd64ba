//! The state machine's adapter to openraft: applies agreed entries, keeps the result, shows it to watchers.
//!
//! Each batch of entries and how far it reaches go to the database in one write; then watchers see the new state, then the
//! callers their responses. A failure that `apply` cannot explain stops the node: the other voters did not have it.

use std::io;

use cluster_config::limits;
use futures::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, StoredMembership};
use rocksdb::WriteBatch;

use super::apply::apply;
use super::command::Response;
use super::feed::Feed;
use super::snapshot;
use super::state::State;
use super::store::{Applied, KEY_SNAPSHOT, Store};
use super::types::{Entry, LogId, Snapshot, SnapshotData, SnapshotMeta, TypeConfig};

/// The agreed state of this voter.
pub struct StateMachine {
    store: Store,
    state: State,
    applied: Applied,
    feed: Feed,
    /// Check the invariants after each command (`SUSUI_CHECK`).
    checked: bool,
}

impl StateMachine {
    /// Loads the stored state and shows it on `feed`. Errors: damage, I/O.
    pub(crate) fn open(store: Store, cluster_id: &str, feed: Feed, checked: bool) -> io::Result<Self> {
        let state = store.state(cluster_id)?;
        let applied = store.applied()?;
        let machine = Self { store, state, applied, feed, checked };
        machine.publish();
        Ok(machine)
    }

    fn publish(&self) {
        self.feed.show(&self.state.cluster);
    }

    fn apply_entry(&mut self, entry: Entry) -> io::Result<Response> {
        self.applied.last = Some(entry.log_id());
        match entry.payload {
            EntryPayload::Blank => Ok(Response::Nothing),
            EntryPayload::Membership(membership) => {
                self.applied.membership = StoredMembership::new(self.applied.last, membership);
                Ok(Response::Nothing)
            }
            EntryPayload::Normal(command) => {
                let response = apply(&mut self.state, &command);
                if self.checked {
                    self.state.cluster.check().map_err(|broken| {
                        io::Error::other(format!("metadata invariant broken after {command}: {broken}"))
                    })?;
                }
                Ok(response)
            }
        }
    }

    fn apply_batch(
        &mut self,
        batch: Vec<Result<EntryResponder<TypeConfig>, io::Error>>,
    ) -> io::Result<Vec<(ApplyResponder<TypeConfig>, Response)>> {
        let before = self.state.clone();
        let mut responses = Vec::with_capacity(batch.len());
        for item in batch {
            let (entry, responder) = item?;
            let response = self.apply_entry(entry)?;
            responses.extend(responder.map(|responder| (responder, response)));
        }
        let mut write = WriteBatch::default();
        self.store.put_state(&mut write, &before, &self.state, &self.applied)?;
        self.store.write(write)?;
        Ok(responses)
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, super::types::StoredMembership), io::Error> {
        Ok((self.applied.last, self.applied.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(limits::METADATA_APPLY_BATCH_MAX);
        while let Some(batch) = batches.next().await {
            let responses = self.apply_batch(batch)?;
            self.publish();
            for (responder, response) in responses {
                responder.send(response);
            }
        }
        Ok(())
    }

    /// Takes state and position together, between two batches: a snapshot never holds more than its meta says.
    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { store: self.store.clone(), state: self.state.clone(), applied: self.applied.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, bytes: SnapshotData) -> Result<(), io::Error> {
        let (packed, state) = snapshot::unpack(&bytes, &self.state.cluster.cluster_id)?;
        if packed.last_log_id != meta.last_log_id {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the metadata snapshot is not the announced one"));
        }
        let applied = Applied { last: meta.last_log_id, membership: meta.last_membership.clone() };
        let mut write = WriteBatch::default();
        self.store.clear_state(&mut write);
        self.store.put_state(&mut write, &State::empty(&state.cluster.cluster_id), &state, &applied)?;
        self.store.put_meta_bytes(&mut write, KEY_SNAPSHOT, &bytes);
        write_synced(self.store.clone(), write).await?;
        self.state = state;
        self.applied = applied;
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let Some(bytes) = self.store.meta_bytes(KEY_SNAPSHOT)? else {
            return Ok(None);
        };
        let (meta, _) = snapshot::unpack(&bytes, &self.state.cluster.cluster_id)?;
        Ok(Some(Snapshot { meta, snapshot: bytes.into() }))
    }
}

/// Packs the state it was given while the state machine goes on.
pub struct SnapshotBuilder {
    store: Store,
    state: State,
    applied: Applied,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let meta = SnapshotMeta { last_log_id: self.applied.last, last_membership: self.applied.membership.clone() };
        let bytes = snapshot::pack(&meta, &self.state)?;
        if bytes.len() > limits::METADATA_SNAPSHOT_BYTES_MAX {
            return Err(io::Error::other(format!("the metadata snapshot has {} bytes", bytes.len())));
        }
        let mut write = WriteBatch::default();
        self.store.put_meta_bytes(&mut write, KEY_SNAPSHOT, &bytes);
        write_synced(self.store.clone(), write).await?;
        Ok(Snapshot { meta, snapshot: bytes })
    }
}

async fn write_synced(store: Store, write: WriteBatch) -> io::Result<()> {
    tokio::task::spawn_blocking(move || {
        store.write(write)?;
        store.sync()
    })
    .await
    .map_err(io::Error::other)?
}
