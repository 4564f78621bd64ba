//! Regular work on the catalog: forgetting what is old, statistics for the planner, space of deleted rows, sums counted anew.
//!
//! Of several coordinators over one Postgres one does each task: who moves its row in `upkeep` has the turn. A turn that brought nothing,
//! because the task failed or its coordinator died, is somebody's again after [`TURN_MS`].

use std::time::Duration;

use sqlx::{Executor, Row};
use tokio_util::sync::CancellationToken;

use super::engine::Engine;
use super::{Catalog, CatalogError};

/// How often it is looked whether a task is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(600);
/// Longest that a task takes, by far: after so long without success another turn is taken.
const TURN_MS: i64 = 3600 * 1000;
/// Administrative calls are kept this long.
const KEEP_AUDIT_MS: i64 = 400 * 24 * 3600 * 1000;

/// A regular task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Old jobs, their stages, keys of uploads, and audit rows go.
    Prune,
    /// Statistics and free space.
    Analyze,
}

impl Task {
    /// Every task.
    pub const ALL: [Task; 2] = [Self::Prune, Self::Analyze];

    /// As stored and as shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prune => "prune",
            Self::Analyze => "analyze",
        }
    }

    fn interval_ms(self) -> i64 {
        match self {
            Self::Prune => 3600 * 1000,
            Self::Analyze => 24 * 3600 * 1000,
        }
    }
}

impl Catalog {
    /// Does what is due until cancelled.
    pub async fn run_upkeep(&self, cancel: CancellationToken) {
        loop {
            for task in Task::ALL {
                match self.upkeep_if_due(task).await {
                    Ok(true) => tracing::info!(task = task.as_str(), "catalog upkeep done"),
                    Ok(false) => {}
                    Err(error) => tracing::warn!(task = task.as_str(), %error, "catalog upkeep failed"),
                }
            }
            if tokio::time::timeout(LOOK_INTERVAL, cancel.cancelled()).await.is_ok() {
                return;
            }
        }
    }

    /// Does the task if it is due and this coordinator's turn. Whether it was.
    pub async fn upkeep_if_due(&self, task: Task) -> Result<bool, CatalogError> {
        let is_turn = self.begin_upkeep(task, task.interval_ms(), TURN_MS).await?;
        if is_turn {
            self.upkeep(task).await?;
        }
        Ok(is_turn)
    }

    /// Does the task whether it is due or not.
    pub async fn upkeep_now(&self, task: Task) -> Result<(), CatalogError> {
        self.begin_upkeep(task, 0, 0).await?;
        self.upkeep(task).await
    }

    /// Takes the turn, if the task was done last `done_ms` ago or earlier, and the last turn began `begun_ms` ago or earlier. Whether it did.
    async fn begin_upkeep(&self, task: Task, done_ms: i64, begun_ms: i64) -> Result<bool, CatalogError> {
        let mut write = self.write().await?;
        let now = write.now_ms().await?;
        let begun = sqlx::query("UPDATE upkeep SET begun_ms = $2 WHERE task = $1 AND ran_ms <= $3 AND begun_ms <= $4")
            .bind(task.as_str())
            .bind(now)
            .bind(now - done_ms)
            .bind(now - begun_ms)
            .execute(&mut *write.transaction)
            .await?
            .rows_affected();
        write.commit().await?;
        Ok(begun == 1)
    }

    async fn upkeep(&self, task: Task) -> Result<(), CatalogError> {
        match task {
            Task::Prune => {
                self.prune().await?;
                self.forget_stages().await?;
                self.prune_audit().await?;
            }
            Task::Analyze => {
                self.recount_stored().await?;
                self.analyze().await?;
            }
        }
        let mut write = self.write().await?;
        let now = write.now_ms().await?;
        sqlx::query("UPDATE upkeep SET ran_ms = $2 WHERE task = $1")
            .bind(task.as_str())
            .bind(now)
            .execute(&mut *write.transaction)
            .await?;
        write.commit().await
    }

    /// The server's settings that matter to the catalog: name, value, unit. SQLite has none but ours.
    pub async fn server_settings(&self) -> Result<Vec<(String, String, String)>, CatalogError> {
        if self.engine() == Engine::Sqlite {
            return Ok(Vec::new());
        }
        let mut connection = self.read().await?;
        let rows: Vec<(String, String, String)> = sqlx::query_as(
            "SELECT name, setting, coalesce(unit, '') FROM pg_settings WHERE name IN ('autovacuum',
                 'checkpoint_completion_target', 'default_statistics_target', 'effective_cache_size',
                 'effective_io_concurrency', 'fsync', 'full_page_writes', 'maintenance_work_mem', 'max_connections',
                 'max_wal_size', 'random_page_cost', 'shared_buffers', 'synchronous_commit', 'wal_buffers', 'work_mem')
             ORDER BY name",
        )
        .fetch_all(&mut *connection)
        .await?;
        Ok(rows)
    }

    /// When each task was done last, Unix milliseconds; 0: never.
    pub async fn upkeep_runs(&self) -> Result<Vec<(String, i64)>, CatalogError> {
        let mut connection = self.read().await?;
        let rows = sqlx::query("SELECT task, ran_ms FROM upkeep ORDER BY task").fetch_all(&mut *connection).await?;
        rows.iter().map(|row| Ok((row.try_get("task")?, row.try_get("ran_ms")?))).collect()
    }

    /// Postgres: space of dead rows and statistics. SQLite: statistics, and the log written back into the file; its free pages are
    /// used again by themselves, and rewriting the whole file would stop all writers for as long.
    async fn analyze(&self) -> Result<(), CatalogError> {
        let statement = match self.engine() {
            Engine::Postgres => {
                "VACUUM (ANALYZE) documents, jobs, job_stages, idempotency_keys, usage, audit, tenants, api_keys"
            }
            Engine::Sqlite => "ANALYZE; PRAGMA wal_checkpoint(PASSIVE);",
        };
        let mut connection = self.read().await?;
        connection.execute(statement).await?;
        Ok(())
    }

    async fn prune_audit(&self) -> Result<(), CatalogError> {
        let mut write = self.write().await?;
        // Ids are in the order of time.
        let oldest_kept = uuid_at(write.now_ms().await? - KEEP_AUDIT_MS);
        sqlx::query("DELETE FROM audit WHERE audit_id < $1")
            .bind(oldest_kept.to_string())
            .execute(&mut *write.transaction)
            .await?;
        write.commit().await
    }

    /// Counts every tenant's stored bytes anew. Deleting a collection subtracts what it saw, and an upload may have come in between.
    async fn recount_stored(&self) -> Result<(), CatalogError> {
        let mut write = self.write().await?;
        let connection = &mut *write.transaction;
        if self.engine() == Engine::Postgres {
            // Uploads count last: those that have counted are committed when their row is ours, the others count after us.
            connection.execute("SELECT tenant FROM tenants ORDER BY tenant FOR UPDATE").await?;
        }
        connection.execute("UPDATE tenants SET stored_bytes = 0").await?;
        sqlx::query(
            "UPDATE tenants SET stored_bytes = counted.bytes
             FROM (SELECT tenant, CAST(sum(content_bytes) AS BIGINT) AS bytes FROM documents GROUP BY tenant) AS counted
             WHERE counted.tenant = tenants.tenant",
        )
        .execute(&mut *connection)
        .await?;
        write.commit().await
    }
}

/// The smallest UUIDv7 of that millisecond.
fn uuid_at(unix_ms: i64) -> uuid::Uuid {
    let mut bytes = [0_u8; 16];
    bytes[..6].copy_from_slice(&unix_ms.max(0).to_be_bytes()[2..]);
    bytes[6] = 0x70;
    bytes[8] = 0x80;
    uuid::Uuid::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::unix_ms;

    #[test]
    fn ids_order_by_their_time() {
        let now = unix_ms();
        let id = uuid::Uuid::now_v7();
        assert!(uuid_at(now - 1000) < id && id < uuid_at(now + 10_000));
        assert_eq!(uuid_at(now).get_version_num(), 7);
    }
}
