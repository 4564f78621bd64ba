//! The catalog: uploads, extracted texts, jobs and idempotency keys, in embedded SQLite or in Postgres.
//!
//! Promises: what a call answered is on disk; a document row and its job appear in one transaction; waiting for a connection or for
//! the writer's turn ends at `pool_timeout`, for a row of another transaction after five seconds, each with a reason. One process owns an SQLite file, guarded by a lock, so that jobs
//! found claimed at open belong to nobody; over Postgres any number of coordinators work side by side, and a claim ends with its lease.
//!
//! Subtle: SQLite has one writer. Writers queue at [`Catalog::write`]'s gate in this process instead of in SQLite's busy loop, which
//! is unfair and burns time. Postgres orders writers by the rows they touch: every transaction takes documents before jobs before
//! stages before tenants, so that no two wait for each other.
//!
//! Times that are stored or compared are the database's ([`WriteTransaction::now_ms`]), which is one clock for all coordinators: theirs
//! may be wrong by any amount. Only what a row says of a call (usage, audit) has the time of the coordinator that was called.

pub mod deletion;
pub mod document_lock;
pub mod documents;
pub mod engine;
pub mod job_view;
pub mod jobs;
pub mod keys;
pub mod operators;
pub mod stages;
pub mod tenants;
pub mod upkeep;
mod waits;

use std::borrow::Cow;
use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::error::ErrorKind;
use prometheus::Registry;
use sqlx::any::AnyRow;
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyConnection, AnyPool, Row, Transaction};
use tokio::sync::{Mutex, MutexGuard};

use self::document_lock::DocumentLocks;
use self::engine::Engine;
use self::waits::{Held, Waits};

/// Why the catalog did not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CatalogError {
    /// No connection, or not the writer's turn, within the pool timeout.
    #[error("the catalog is busy: no {what} within {} ms", waited.as_millis())]
    Busy {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        waited: Duration,
    },
    /// Other transactions are in the way; the text is the database's.
    #[error("the catalog is busy: {0}")]
    Contended(String),
    /// The database does not answer; the text is the driver's.
    #[error("the catalog's database cannot be reached: {0}")]
    Unreachable(String),
    /// Another process has it open.
    #[error("the catalog at {path} is in use by another process")]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// An idempotency key came back with another request.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    /// Too many jobs wait.
    #[error("{waiting} documents wait to be indexed")]
    QueueFull {
        /// The bound that was met.
        waiting: u32,
    },
    /// The tenant's own bound is met.
    #[error("the tenant may store {bytes_max} bytes of documents")]
    StoredBytes {
        /// The bound.
        bytes_max: u64,
    },
    /// A job that cannot go back into the queue.
    #[error("the job cannot be retried: it has not failed, or its document was uploaded again or deleted since")]
    NotRetryable,
    /// The disk is full.
    #[error("the catalog's disk is full")]
    Full,
    /// Anything else; the text is for the log.
    #[error("catalog: {0}")]
    Failed(String),
}

impl CatalogError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Busy { .. } | Self::Contended(_) | Self::QueueFull { .. } => ErrorKind::Overloaded,
            Self::InUse { .. } | Self::Unreachable(_) => ErrorKind::Unavailable,
            Self::KeyReused | Self::NotRetryable => ErrorKind::Conflict,
            Self::StoredBytes { .. } => ErrorKind::PermissionDenied,
            Self::Full => ErrorKind::StorageFull,
            Self::Failed(_) => ErrorKind::Internal,
        }
    }

    /// In words; empty for the kind's own hint.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::KeyReused => "use a new Idempotency-Key for a new request",
            Self::NotRetryable => "upload the document again",
            Self::InUse { .. } => {
                "stop the other coordinator, give this one its own data_dir, or use Postgres for both"
            }
            Self::StoredBytes { .. } => "delete documents, or ask the operator for more",
            Self::QueueFull { .. } => "let the queue drain, then send again",
            _ => "",
        }
    }
}

impl From<sqlx::Error> for CatalogError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) => match database.code() {
                Some(code) => engine::read_code(&code, &error.to_string()),
                None => Self::Failed(error.to_string()),
            },
            sqlx::Error::Io(_) | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
                Self::Unreachable(error.to_string())
            }
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// How to open the catalog.
#[derive(Clone)]
pub struct CatalogOptions {
    /// `sqlite://PATH` or `postgres://USER:PASSWORD@HOST:PORT/DATABASE`.
    pub url: String,
    /// Connections kept open.
    pub pool_size: u32,
    /// Connections beyond, closed when given back.
    pub max_overflow: u32,
    /// Longest wait for a connection.
    pub pool_timeout: Duration,
    /// How long a worker's claim holds without renewal: [`LEASE`] but in tests.
    pub lease: Duration,
}

/// Long enough for a coordinator that pauses, short enough that a dead one's documents do not wait for minutes.
pub const LEASE: Duration = Duration::from_secs(30);

impl CatalogOptions {
    /// Most connections at once.
    pub fn connections_max(&self) -> u32 {
        self.pool_size.saturating_add(self.max_overflow)
    }
}

/// The open catalog. Clones share it.
#[derive(Clone)]
pub struct Catalog {
    engine: Engine,
    pool: AnyPool,
    gate: Arc<Mutex<()>>,
    locks: Arc<DocumentLocks>,
    pool_timeout: Duration,
    connections_max: u32,
    lease: Duration,
    waits: Waits,
    /// Of an SQLite file; held while open.
    _lock: Option<Arc<File>>,
}

/// The pool as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolCounts {
    /// Connections.
    pub open: u32,
    /// Of them not in use.
    pub idle: u32,
    /// The bound: size and overflow.
    pub max: u32,
    /// Waits for a connection or a turn that ended without it, since start.
    pub timeouts: u64,
}

/// A connection to read with.
pub(crate) struct ReadConnection {
    connection: PoolConnection<Any>,
    _held: Held,
}

impl Deref for ReadConnection {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        &self.connection
    }
}

impl DerefMut for ReadConnection {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        &mut self.connection
    }
}

/// The writer's turn with its open transaction.
pub(crate) struct WriteTransaction<'a> {
    pub(crate) transaction: Transaction<'static, Any>,
    _held: Held,
    engine: Engine,
    _turn: Option<MutexGuard<'a, ()>>,
}

impl WriteTransaction<'_> {
    /// Now, by the database's clock: Unix milliseconds.
    pub(crate) async fn now_ms(&mut self) -> Result<i64, CatalogError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {}", self.engine.now_ms()));
        Ok(sqlx::query_scalar(sql).fetch_one(&mut *self.transaction).await?)
    }

    /// Durable on return.
    pub(crate) async fn commit(self) -> Result<(), CatalogError> {
        Ok(self.transaction.commit().await?)
    }
}

impl Catalog {
    /// Opens or creates the database, applies migrations, and returns jobs that an earlier process left claimed to the queue.
    pub async fn open(options: &CatalogOptions) -> Result<Self, CatalogError> {
        let engine = Engine::of(&options.url)?;
        if engine == Engine::Postgres && options.connections_max() < 2 {
            let why = "Postgres needs two connections at least: raise catalog.pool_size or catalog.max_overflow";
            return Err(CatalogError::Failed(why.into()));
        }
        let lock = match engine {
            Engine::Sqlite => Some(Arc::new(engine::lock_file(&engine::sqlite_path(&options.url))?)),
            Engine::Postgres => None,
        };
        let pool = engine.connect(options).await?;
        let migrated = engine.migrations().run(&pool).await;
        migrated.map_err(|error| CatalogError::Failed(format!("migration: {error}")))?;
        let catalog = Self {
            engine,
            pool,
            gate: Arc::default(),
            locks: DocumentLocks::new(options.connections_max()),
            pool_timeout: options.pool_timeout,
            connections_max: options.connections_max(),
            lease: options.lease,
            waits: Waits::new(),
            _lock: lock,
        };
        if engine == Engine::Sqlite {
            let resumed = catalog.release_leases().await?;
            if resumed > 0 {
                tracing::info!(jobs = resumed, "jobs of an earlier process are resumed");
            }
        }
        Ok(catalog)
    }

    /// Closes all connections, after those in use are given back.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// The database behind it.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Connections of the pool.
    pub fn pool_counts(&self) -> PoolCounts {
        PoolCounts {
            open: self.pool.size(),
            idle: u32::try_from(self.pool.num_idle()).unwrap_or(u32::MAX),
            max: self.connections_max,
            timeouts: self.waits.timeouts(),
        }
    }

    /// Lets `registry` show how long calls wait for connections and turns.
    ///
    /// # Errors
    /// The series is there already.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        self.waits.register(registry)
    }

    /// How long a claim holds without renewal.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Whether a connection answers.
    pub async fn check(&self) -> Result<(), CatalogError> {
        let mut connection = self.read().await?;
        sqlx::query("SELECT 1").execute(&mut *connection).await?;
        Ok(())
    }

    /// Gives a call less time than it would take by itself. Errors: its own, and what kept it.
    pub async fn within<T>(
        &self,
        longest: Duration,
        call: impl Future<Output = Result<T, CatalogError>>,
    ) -> Result<T, CatalogError> {
        tokio::time::timeout(longest, call).await.unwrap_or_else(|_| Err(self.obstacle("answer", longest)))
    }

    /// A connection to read with.
    pub(crate) async fn read(&self) -> Result<ReadConnection, CatalogError> {
        let asked = Instant::now();
        let acquired = self.pool.acquire().await.map_err(|error| self.refusal(error));
        self.waits.observe(asked.elapsed());
        Ok(ReadConnection { connection: acquired?, _held: self.waits.hold() })
    }

    /// The writer's turn. Dropping it without commit rolls back.
    pub(crate) async fn write(&self) -> Result<WriteTransaction<'_>, CatalogError> {
        let asked = Instant::now();
        let begun = self.begin().await;
        self.waits.observe(asked.elapsed());
        begun
    }

    async fn begin(&self) -> Result<WriteTransaction<'_>, CatalogError> {
        let turn = match self.engine {
            Engine::Postgres => None,
            Engine::Sqlite => Some(self.in_time("turn to write", self.gate.lock()).await?),
        };
        let begun = self.pool.begin_with(self.engine.begin()).await;
        let transaction = begun.map_err(|error| self.refusal(error))?;
        Ok(WriteTransaction { transaction, _held: self.waits.hold(), engine: self.engine, _turn: turn })
    }

    async fn in_time<T>(&self, what: &'static str, turn: impl Future<Output = T>) -> Result<T, CatalogError> {
        let waited = self.pool_timeout;
        tokio::time::timeout(waited, turn).await.map_err(|_| {
            self.waits.timed_out();
            CatalogError::Busy { what, waited }
        })
    }

    fn refusal(&self, error: sqlx::Error) -> CatalogError {
        if !matches!(error, sqlx::Error::PoolTimedOut) {
            return error.into();
        }
        let obstacle = self.obstacle("connection is free", self.pool_timeout);
        if matches!(obstacle, CatalogError::Busy { .. }) {
            self.waits.timed_out();
        }
        obstacle
    }

    /// Why there was no `what` for so long: the connections are in use, or the database gives none. The pool says the same of both, for it
    /// goes on trying while a database refuses connections. Half of them are few: the others may be on their way back.
    fn obstacle(&self, what: &'static str, waited: Duration) -> CatalogError {
        if self.waits.held() < self.connections_max.div_ceil(2) {
            CatalogError::Unreachable(format!("no {what} within {} ms", waited.as_millis()))
        } else {
            CatalogError::Busy { what, waited }
        }
    }
}

/// A count as stored: both engines have signed integers only.
fn get_u64(row: &AnyRow, column: &str) -> Result<u64, CatalogError> {
    Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
}

/// A small count as stored.
fn get_u32(row: &AnyRow, column: &str) -> Result<u32, CatalogError> {
    Ok(u32::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
}

/// Text as Postgres takes it: it has no NUL. A space is as long, so that byte offsets stay.
fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', " ")) } else { Cow::Borrowed(text) }
}

/// Parameters `first`, and so on, `count` of them: `$3, $4`.
fn parameters(first: usize, count: usize) -> String {
    (first..first + count).map(|number| format!("${number}")).collect::<Vec<_>>().join(", ")
}

/// Parameters of several rows in one `VALUES`: `($1, $2), ($3, $4)`.
fn row_parameters(rows: usize, columns: usize) -> String {
    let row = |row: usize| format!("({})", parameters(row * columns + 1, columns));
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_count_on_over_rows() {
        assert_eq!(row_parameters(2, 3), "($1, $2, $3), ($4, $5, $6)");
        assert_eq!(parameters(3, 2), "$3, $4");
    }
}
