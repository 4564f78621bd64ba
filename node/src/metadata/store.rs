//! The metadata group's RocksDB: one database for the log and the state machine, and the only place that knows its keys.
//!
//! Both share one write-ahead log, so whatever the state machine wrote after an entry cannot survive a crash that the entry
//! did not survive. Only the log waits for the disk; the state machine's writes ride along, because the log can redo them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use cluster_config::cluster_state::ClusterState;
use cluster_config::ids::{NodeId, ShardId};
use rocksdb::{ColumnFamilyDescriptor, DBRecoveryMode, DBWithThreadMode, MultiThreaded, Options, WriteBatch};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{decode, encode};
use super::state::State;
use super::types::{LogId, StoredMembership};

type Db = DBWithThreadMode<MultiThreaded>;

/// Column family of the Raft log: index, big-endian, to entry.
const CF_LOG: &str = "log";
/// Column family of everything the log needs beside its entries.
const CF_META: &str = "meta";
/// Column family of the state machine, one record per node, collection, shard, retired copy and forced recovery.
const CF_STATE: &str = "state";

/// Keys of [`CF_META`].
pub(crate) const KEY_IDENTITY: &[u8] = b"identity";
pub(crate) const KEY_VOTE: &[u8] = b"vote";
pub(crate) const KEY_COMMITTED: &[u8] = b"committed";
pub(crate) const KEY_PURGED: &[u8] = b"purged";
pub(crate) const KEY_SNAPSHOT: &[u8] = b"snapshot";

/// First bytes of the keys of [`CF_STATE`]. Never reused.
const TAG_APPLIED: u8 = b'a';
const TAG_AUDIT: u8 = b'u';
const TAG_COLLECTION: u8 = b'c';
const TAG_REGISTRATION: u8 = b'g';
const TAG_HEAD: u8 = b'h';
const TAG_NODE: u8 = b'n';
const TAG_RETIRED: u8 = b'r';
const TAG_SHARD: u8 = b's';

/// Memory for writes before they go to a table file; the whole state is far smaller.
const WRITE_BUFFER_BYTES: usize = 8 << 20;
/// Most bytes of write-ahead log before RocksDB flushes old tables to be rid of it.
const WAL_BYTES_MAX: u64 = 64 << 20;

/// Whose database this is. A directory of another cluster or node is never opened.
#[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
struct Identity {
    cluster_id: String,
    node: NodeId,
}

/// The scalar fields of [`ClusterState`].
#[derive(PartialEq, Serialize, serde::Deserialize)]
struct Head {
    cluster_id: String,
    version: u64,
    feature_level: u32,
    next_collection: u64,
    next_copy: u64,
}

impl Head {
    fn of(cluster: &ClusterState) -> Self {
        Self {
            cluster_id: cluster.cluster_id.clone(),
            version: cluster.version,
            feature_level: cluster.feature_level,
            next_collection: cluster.next_collection,
            next_copy: cluster.next_copy,
        }
    }
}

/// How far the state machine has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, serde::Deserialize)]
pub(crate) struct Applied {
    pub(crate) last: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

/// The open database. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Store {
    db: Arc<Db>,
}

pub(crate) fn io_error(error: rocksdb::Error) -> io::Error {
    io::Error::other(error)
}

impl Store {
    /// Opens the database in `dir`, creating it if absent. Errors: another cluster's or node's directory, damage, I/O.
    pub(crate) fn open(dir: &Path, cluster_id: &str, node: NodeId) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_max_total_wal_size(WAL_BYTES_MAX);
        options.set_keep_log_file_num(4);
        // The default would open with less than was synced if the log is damaged in the middle, and say nothing.
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        let families = [CF_LOG, CF_META, CF_STATE].map(|name| {
            let mut options = Options::default();
            options.set_write_buffer_size(WRITE_BUFFER_BYTES);
            ColumnFamilyDescriptor::new(name, options)
        });
        let db = Db::open_cf_descriptors(&options, dir, families).map_err(io_error)?;
        let store = Self { db: Arc::new(db) };
        let identity = Identity { cluster_id: cluster_id.to_owned(), node };
        match store.meta::<Identity>(KEY_IDENTITY)? {
            Some(found) if found == identity => {}
            Some(found) => {
                let text = format!(
                    "{} belongs to node {} of cluster {:?}, this is node {node} of cluster {cluster_id:?}",
                    dir.display(),
                    found.node,
                    found.cluster_id
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            None => {
                let mut batch = WriteBatch::default();
                store.put_meta(&mut batch, KEY_IDENTITY, &identity)?;
                store.write(batch)?;
                store.sync()?;
            }
        }
        Ok(store)
    }

    /// Writes without waiting for the disk.
    pub(crate) fn write(&self, batch: WriteBatch) -> io::Result<()> {
        fail::fail_point!("metadata-write-before", |_| Err(io::Error::other("fail point")));
        self.db.write(batch).map_err(io_error)?;
        fail::fail_point!("metadata-write-after", |_| Err(io::Error::other("fail point")));
        Ok(())
    }

    /// Returns when everything written so far is on the disk. Blocks.
    pub(crate) fn sync(&self) -> io::Result<()> {
        fail::fail_point!("metadata-sync-before", |_| Err(io::Error::other("fail point")));
        self.db.flush_wal(true).map_err(io_error)?;
        fail::fail_point!("metadata-sync-after", |_| Err(io::Error::other("fail point")));
        Ok(())
    }

    pub(crate) fn meta<T: DeserializeOwned>(&self, key: &[u8]) -> io::Result<Option<T>> {
        self.meta_bytes(key)?.map(|bytes| Ok(decode(&bytes)?)).transpose()
    }

    pub(crate) fn meta_bytes(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.db.get_cf(&self.family(CF_META), key).map_err(io_error)
    }

    pub(crate) fn put_meta<T: Serialize>(&self, batch: &mut WriteBatch, key: &[u8], value: &T) -> io::Result<()> {
        self.put_meta_bytes(batch, key, &encode(value)?);
        Ok(())
    }

    pub(crate) fn put_meta_bytes(&self, batch: &mut WriteBatch, key: &[u8], bytes: &[u8]) {
        batch.put_cf(&self.family(CF_META), key, bytes);
    }

    /// Entries with indexes in `first..end`, in order, as stored.
    pub(crate) fn log_entries(&self, first: u64, end: u64) -> impl Iterator<Item = io::Result<(u64, Box<[u8]>)>> + '_ {
        let mut options = rocksdb::ReadOptions::default();
        options.set_iterate_upper_bound(end.to_be_bytes());
        let start = first.to_be_bytes();
        let mode = rocksdb::IteratorMode::From(&start, rocksdb::Direction::Forward);
        self.db.iterator_cf_opt(&self.family(CF_LOG), options, mode).map(|item| {
            let (key, value) = item.map_err(io_error)?;
            Ok((log_index(&key)?, value))
        })
    }

    /// The entry with the highest index.
    pub(crate) fn last_log_entry(&self) -> io::Result<Option<Box<[u8]>>> {
        let mut entries = self.db.iterator_cf(&self.family(CF_LOG), rocksdb::IteratorMode::End);
        entries.next().map(|item| Ok(item.map_err(io_error)?.1)).transpose()
    }

    pub(crate) fn put_log_entry(&self, batch: &mut WriteBatch, index: u64, bytes: &[u8]) {
        batch.put_cf(&self.family(CF_LOG), index.to_be_bytes(), bytes);
    }

    /// Removes the entries with indexes in `first..end`.
    pub(crate) fn delete_log_entries(&self, batch: &mut WriteBatch, first: u64, end: u64) {
        batch.delete_range_cf(&self.family(CF_LOG), first.to_be_bytes(), end.to_be_bytes());
    }

    pub(crate) fn applied(&self) -> io::Result<Applied> {
        let bytes = self.db.get_cf(&self.family(CF_STATE), [TAG_APPLIED]).map_err(io_error)?;
        bytes.map_or(Ok(Applied::default()), |bytes| Ok(decode(&bytes)?))
    }

    /// The stored state, or the empty one of `cluster_id`.
    pub(crate) fn state(&self, cluster_id: &str) -> io::Result<State> {
        let mut state = State::empty(cluster_id);
        let cluster = Arc::make_mut(&mut state.cluster);
        for item in self.db.iterator_cf(&self.family(CF_STATE), rocksdb::IteratorMode::Start) {
            let (key, value) = item.map_err(io_error)?;
            match key.first() {
                Some(&TAG_HEAD) => {
                    let head: Head = decode(&value)?;
                    cluster.cluster_id = head.cluster_id;
                    cluster.version = head.version;
                    cluster.feature_level = head.feature_level;
                    cluster.next_collection = head.next_collection;
                    cluster.next_copy = head.next_copy;
                }
                Some(&TAG_NODE) => insert(&mut cluster.nodes, &value)?,
                Some(&TAG_COLLECTION) => insert(&mut cluster.collections, &value)?,
                Some(&TAG_SHARD) => insert(&mut cluster.shards, &value)?,
                Some(&TAG_RETIRED) => insert(&mut cluster.retired, &value)?,
                Some(&TAG_AUDIT) => insert(&mut cluster.audit, &value)?,
                Some(&TAG_REGISTRATION) => insert(&mut state.registrations, &value)?,
                Some(&TAG_APPLIED) => {}
                other => {
                    let text = format!("unknown record {other:?} in the metadata state");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
            }
        }
        Ok(state)
    }

    /// Puts into `batch` what makes the stored `old` into `new`, and how far `new` has come.
    pub(crate) fn put_state(
        &self,
        batch: &mut WriteBatch,
        old: &State,
        new: &State,
        applied: &Applied,
    ) -> io::Result<()> {
        if !Arc::ptr_eq(&old.cluster, &new.cluster) {
            let (from, to) = (&*old.cluster, &*new.cluster);
            self.put_changes(batch, TAG_NODE, &from.nodes, &to.nodes, |id| id.0.to_be_bytes().to_vec())?;
            self.put_changes(batch, TAG_COLLECTION, &from.collections, &to.collections, |id| {
                id.0.to_be_bytes().to_vec()
            })?;
            self.put_changes(batch, TAG_SHARD, &from.shards, &to.shards, shard_key)?;
            self.put_changes(batch, TAG_RETIRED, &from.retired, &to.retired, |id| id.0.to_be_bytes().to_vec())?;
            self.put_changes(batch, TAG_AUDIT, &from.audit, &to.audit, |number| number.to_be_bytes().to_vec())?;
            batch.put_cf(&self.family(CF_STATE), [TAG_HEAD], encode(&Head::of(to))?);
        }
        self.put_changes(batch, TAG_REGISTRATION, &old.registrations, &new.registrations, |id| {
            id.0.to_be_bytes().to_vec()
        })?;
        batch.put_cf(&self.family(CF_STATE), [TAG_APPLIED], encode(applied)?);
        Ok(())
    }

    /// Removes the whole state machine; followed in the same batch by a [`Store::put_state`] from the empty state.
    pub(crate) fn clear_state(&self, batch: &mut WriteBatch) {
        batch.delete_range_cf(&self.family(CF_STATE), [0u8].as_slice(), [u8::MAX].as_slice());
    }

    fn put_changes<K: Ord + Serialize, V: PartialEq + Serialize>(
        &self,
        batch: &mut WriteBatch,
        tag: u8,
        old: &BTreeMap<K, V>,
        new: &BTreeMap<K, V>,
        key_bytes: impl Fn(&K) -> Vec<u8>,
    ) -> io::Result<()> {
        let family = self.family(CF_STATE);
        let key_of = |key: &K| [vec![tag], key_bytes(key)].concat();
        for key in old.keys().filter(|key| !new.contains_key(key)) {
            batch.delete_cf(&family, key_of(key));
        }
        for (key, value) in new.iter().filter(|(key, value)| old.get(key) != Some(value)) {
            batch.put_cf(&family, key_of(key), encode(&(key, value))?);
        }
        Ok(())
    }

    fn family(&self, name: &str) -> Arc<rocksdb::BoundColumnFamily<'_>> {
        self.db.cf_handle(name).expect("every column family is created by open")
    }
}

fn insert<K: Ord + DeserializeOwned, V: DeserializeOwned>(map: &mut BTreeMap<K, V>, bytes: &[u8]) -> io::Result<()> {
    let (key, value) = decode::<(K, V)>(bytes)?;
    map.insert(key, value);
    Ok(())
}

fn shard_key(shard: &ShardId) -> Vec<u8> {
    [shard.collection.0.to_be_bytes().as_slice(), shard.index.to_be_bytes().as_slice()].concat()
}

fn log_index(key: &[u8]) -> io::Result<u64> {
    let bytes = key.try_into().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a log key is not 8 bytes"))?;
    Ok(u64::from_be_bytes(bytes))
}
