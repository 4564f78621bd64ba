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
