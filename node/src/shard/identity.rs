//! Which copy of which shard a directory holds. Written when the copy is created, compared at every opening: a directory that
//! belongs to another cluster, shard, copy, lineage or collection is never served. Only a lineage can be changed, by adoption.

use cluster_config::collection::CollectionSpec;
use cluster_config::ids::{CopyId, Lineage, ShardId};
use rocksdb::WriteBatch;
use serde::{Deserialize, Serialize};

use super::keys::{Family, MetaKey};
use super::records::corrupt;
use super::store::{Durability, Store};
use crate::replication::storage::StorageError;

/// Layout of the whole directory. A build refuses a newer one.
const LAYOUT: u32 = 1;

/// Stored as JSON: it is read by people, and the spec gains fields with defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Identity {
    layout: u32,
    pub(crate) cluster_id: String,
    pub(crate) shard: ShardId,
    pub(crate) copy: CopyId,
    pub(crate) lineage: Lineage,
    pub(crate) spec: CollectionSpec,
}

/// What opening found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// An empty directory; the identity is now written and durable.
    Created,
    /// The same copy.
    Same,
    /// The same copy, of an older lineage than asked for.
    OlderLineage(Lineage),
    /// Another one.
    Other(String),
    /// An empty directory, where no copy may be created.
    Nothing,
}

impl Identity {
    pub(crate) fn new(
        cluster_id: String,
        shard: ShardId,
        copy: CopyId,
        lineage: Lineage,
        spec: CollectionSpec,
    ) -> Self {
        Self { layout: LAYOUT, cluster_id, shard, copy, lineage, spec }
    }

    /// Compares with what is stored, or stores it in an empty directory, if that is allowed.
    pub(crate) fn claim(&self, store: &Store, may_create: bool) -> Result<Found, StorageError> {
        if let Some(value) = store.get(Family::Meta, &MetaKey::Identity.encode())? {
            let stored = parse(&value)?;
            if stored.lineage < self.lineage && self.difference(&stored.of_lineage(self.lineage)).is_none() {
                return Ok(Found::OlderLineage(stored.lineage));
            }
            return Ok(self.difference(&stored).map_or(Found::Same, Found::Other));
        }
        if store.last(Family::Log, &[], None)?.is_some() || store.last(Family::Meta, &[], None)?.is_some() {
            return Err(corrupt("identity", "missing from a copy that has data"));
        }
        if !may_create {
            return Ok(Found::Nothing);
        }
        self.put(store)?;
        Ok(Found::Created)
    }

    /// Stores this identity, durably.
    pub(crate) fn put(&self, store: &Store) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        self.add_to(store, &mut batch)?;
        store.write(batch, Durability::Synced)
    }

    fn of_lineage(&self, lineage: Lineage) -> Self {
        Self { lineage, ..self.clone() }
    }

    /// Adds what a copy's database says of its identity to a batch.
    pub(crate) fn add_to(&self, store: &Store, batch: &mut WriteBatch) -> Result<(), StorageError> {
        let value = serde_json::to_vec(self).map_err(|error| StorageError::Io(error.to_string()))?;
        batch.put_cf(store.family(Family::Meta), MetaKey::Identity.encode(), value);
        Ok(())
    }

    /// Compares with what is stored in a checkpoint of another copy.
    pub(crate) fn differs_but_for_copy(&self, store: &Store) -> Result<Option<String>, StorageError> {
        let value = store.get(Family::Meta, &MetaKey::Identity.encode())?;
        let mut stored = parse(&value.ok_or_else(|| corrupt("identity", "missing"))?)?;
        stored.copy = self.copy;
        Ok(self.difference(&stored))
    }

    fn difference(&self, stored: &Identity) -> Option<String> {
        let differs =
            |what: &str, stored: String, asked: String| Some(format!("{what} is {stored}, asked for {asked}"));
        if stored.layout != self.layout {
            return differs("layout", stored.layout.to_string(), self.layout.to_string());
        }
        if stored.cluster_id != self.cluster_id {
            return differs("cluster", stored.cluster_id.clone(), self.cluster_id.clone());
        }
        if stored.shard != self.shard {
            return differs("shard", stored.shard.to_string(), self.shard.to_string());
        }
        if stored.copy != self.copy {
            return differs("copy", stored.copy.to_string(), self.copy.to_string());
        }
        if stored.lineage != self.lineage {
            return differs("lineage", stored.lineage.to_string(), self.lineage.to_string());
        }
        if stored.spec != self.spec {
            return differs("spec", format!("{:?}", stored.spec), format!("{:?}", self.spec));
        }
        None
    }
}

fn parse(value: &[u8]) -> Result<Identity, StorageError> {
    serde_json::from_slice(value).map_err(|error| corrupt("identity", &error.to_string()))
}
