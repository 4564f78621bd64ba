//! The metadata group's storage keeps openraft's contract, and keeps it across a reopen.

use cluster_config::ids::NodeId;
use node::metadata::Storage;
use node::metadata::log_store::LogStore;
use node::metadata::state_machine::StateMachine;
use node::metadata::types::TypeConfig;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use tempfile::TempDir;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let failed = |error: std::io::Error| StorageError::read(TypeConfig::err_from_error(&error));
        let dir = TempDir::new().map_err(failed)?;
        let storage = Storage::open(dir.path(), "suite", NodeId(0), true).map_err(failed)?;
        Ok((dir, storage.log, storage.machine))
    }
}

/// Every case of openraft's own suite for storages.
#[test]
fn upstream_suite() {
    TypeConfig::run(async {
        Suite::test_all(Builder).await.expect("openraft's storage suite");
    });
}

/// What a restart finds: everything that was reported durable, and nothing that was cut off.
mod reopened {
    use std::path::Path;
    use std::sync::Arc;

    use cluster_config::cluster_state::ClusterState;
    use cluster_config::ids::{Incarnation, NodeId};
    use futures::stream;
    use node::metadata::Storage;
    use node::metadata::command::{Command, FEATURE_LEVEL, RegisterNode};
    use node::metadata::types::TypeConfig;
    use openraft::alias::{EntryOf, LogIdOf, VoteOf};
    use openraft::entry::RaftEntry;
    use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftSnapshotBuilder, RaftStateMachine};
    use openraft::vote::RaftLeaderIdExt;
    use openraft::{EntryPayload, RaftLogReader, StorageHelper};
    use tempfile::TempDir;

    fn open(dir: &Path) -> Storage {
        Storage::open(dir, "c", NodeId(1), true).expect("opens")
    }

    fn id(index: u64) -> LogIdOf<TypeConfig> {
        let leader = <TypeConfig as openraft::RaftTypeConfig>::LeaderId::new_committed(1, NodeId(1));
        LogIdOf::<TypeConfig>::new(leader, index)
    }

    fn register(index: u64) -> EntryOf<TypeConfig> {
        let command = Command::RegisterNode(RegisterNode {
            node: NodeId(index),
            rpc_address: "127.0.0.1:1".into(),
            http_address: String::new(),
            zone: "z".into(),
            weight: 100,
            is_data: true,
            registration: "a".into(),
            copies_on_disk: Vec::new(),
            feature_level: FEATURE_LEVEL,
        });
        EntryOf::<TypeConfig>::new(id(index), EntryPayload::Normal(command))
    }

    async fn indexes(storage: &mut Storage) -> Vec<u64> {
        let mut reader = storage.log.get_log_reader().await;
        let entries = reader.try_get_log_entries(..).await.expect("reads");
        entries.iter().map(|entry| entry.index()).collect()
    }

    async fn apply(storage: &mut Storage, indexes: std::ops::RangeInclusive<u64>) -> Arc<ClusterState> {
        let entries = indexes.map(|index| Ok((register(index), None)));
        storage.machine.apply(stream::iter(entries)).await.expect("applies");
        storage.state.borrow().clone()
    }

    #[tokio::test]
    async fn log_vote_and_committed_are_found_again() {
        let dir = TempDir::new().expect("a directory");
        let mut storage = open(dir.path());
        let vote = VoteOf::<TypeConfig>::new(3, NodeId(1));
        storage.log.save_vote(&vote).await.expect("saves");
        storage.log.blocking_append((1..=10).map(register)).await.expect("appends");
        storage.log.truncate_after(Some(id(8))).await.expect("truncates");
        storage.log.purge(id(2)).await.expect("purges");
        storage.log.save_committed(Some(id(7))).await.expect("saves");
        drop(storage);

        let mut storage = open(dir.path());
        assert_eq!(indexes(&mut storage).await, [3, 4, 5, 6, 7, 8]);
        let state = storage.log.get_log_state().await.expect("reads");
        assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(2)), Some(id(8))));
        assert_eq!(storage.log.read_committed().await.expect("reads"), Some(id(7)));
        assert_eq!(storage.log.get_log_reader().await.read_vote().await.expect("reads"), Some(vote));
        storage.log.blocking_append([register(9)]).await.expect("goes on where it ended");
    }

    #[tokio::test]
    async fn a_log_purged_beyond_its_end_goes_on_behind_the_purge() {
        let dir = TempDir::new().expect("a directory");
        let mut storage = open(dir.path());
        storage.log.blocking_append((1..=3).map(register)).await.expect("appends");
        storage.log.purge(id(20)).await.expect("purges");
        drop(storage);

        let mut storage = open(dir.path());
        assert_eq!(storage.log.get_log_state().await.expect("reads").last_log_id, Some(id(20)));
        assert!(storage.log.blocking_append([register(4)]).await.is_err(), "a hole in time");
        storage.log.blocking_append([register(21)]).await.expect("continues");
        assert_eq!(indexes(&mut storage).await, [21]);
    }

    #[tokio::test]
    async fn holes_are_refused_and_leave_the_log_as_it_was() {
        let dir = TempDir::new().expect("a directory");
        let mut storage = open(dir.path());
        storage.log.blocking_append((1..=3).map(register)).await.expect("appends");
        for hole in [vec![5], vec![3], vec![4, 6]] {
            let refused = storage.log.blocking_append(hole.iter().copied().map(register)).await;
            assert!(refused.is_err(), "{hole:?}");
        }
        assert_eq!(indexes(&mut storage).await, [1, 2, 3]);
        storage.log.blocking_append([register(4)]).await.expect("continues");
    }

    #[tokio::test]
    async fn the_state_is_found_again_as_far_as_it_was_applied() {
        let dir = TempDir::new().expect("a directory");
        let mut storage = open(dir.path());
        let first = EntryOf::<TypeConfig>::new(id(0), EntryPayload::Blank);
        storage.log.blocking_append([first].into_iter().chain((1..=9).map(register))).await.expect("appends");
        let shown = apply(&mut storage, 1..=6).await;
        assert_eq!((shown.version, shown.nodes.len()), (6, 6));
        drop(storage);

        let mut storage = open(dir.path());
        assert_eq!(**storage.state.borrow(), *shown);
        assert_eq!(storage.machine.applied_state().await.expect("reads").0, Some(id(6)));
        let after = apply(&mut storage, 7..=9).await;
        assert_eq!(after.nodes.len(), 9);
        assert_eq!(after.nodes[&NodeId(6)].incarnation, Incarnation(1), "nothing is applied twice");
        StorageHelper::new(&mut storage.log, &mut storage.machine)
            .with_id(NodeId(1))
            .get_initial_state()
            .await
            .expect("a sound whole");
    }

    #[tokio::test]
    async fn a_snapshot_holds_what_its_position_says_and_replaces_everything() {
        let from = TempDir::new().expect("a directory");
        let mut source = open(from.path());
        apply(&mut source, 1..=5).await;
        let mut builder = source.machine.try_create_snapshot_builder(true).await.expect("forced");
        apply(&mut source, 6..=8).await;
        let snapshot = builder.build_snapshot().await.expect("builds");
        assert_eq!(snapshot.meta.last_log_id, Some(id(5)));

        let to = TempDir::new().expect("a directory");
        let mut target = open(to.path());
        apply(&mut target, 1..=2).await;
        let mut damaged = snapshot.snapshot.to_vec();
        damaged[20] ^= 1;
        assert!(target.machine.install_snapshot(&snapshot.meta, damaged.into()).await.is_err());
        assert_eq!(target.state.borrow().nodes.len(), 2, "a damaged snapshot changes nothing");
        target.machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.expect("installs");
        drop(target);

        let mut target = open(to.path());
        assert_eq!(target.state.borrow().nodes.len(), 5);
        assert_eq!(target.machine.applied_state().await.expect("reads").0, Some(id(5)));
        let kept = target.machine.get_current_snapshot().await.expect("reads").expect("kept");
        assert_eq!(kept.meta, snapshot.meta);
    }

    #[test]
    fn a_directory_of_another_cluster_or_node_is_refused() {
        let dir = TempDir::new().expect("a directory");
        drop(open(dir.path()));
        for (cluster, node) in [("d", 1), ("c", 2)] {
            let refused = Storage::open(dir.path(), cluster, NodeId(node), true).err().expect("refused");
            assert!(refused.to_string().contains("belongs to node 1"), "{refused}");
        }
    }
}
