//! The catalog: uploads, extracted texts, jobs and idempotency keys, in embedded SQLite.
//!
//! Promises: what a call answered is on disk (`synchronous = FULL`); a document row and its job appear in one transaction; waiting
//! for a connection or for the writer ends at `pool_timeout` with a reason. One process owns the file, guarded by a lock, so that
//! jobs found claimed at open belong to nobody.
//!
//! Subtle: SQLite has one writer. Writers queue at [`Catalog::write`]'s gate in this process instead of in SQLite's busy loop, which
//! is unfair and burns time.

pub mod documents;
pub mod jobs;
pub mod stages;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cluster_config::error::ErrorKind;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, Transaction};
use tokio::sync::{Mutex, MutexGuard};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Wait inside SQLite for a lock another process holds (a backup tool, a shell): the only locks our gate does not order.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

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
            Self::Busy { .. } | Self::QueueFull { .. } => ErrorKind::Overloaded,
            Self::InUse { .. } => ErrorKind::Unavailable,
            Self::KeyReused | Self::NotRetryable => ErrorKind::Conflict,
            Self::Full => ErrorKind::StorageFull,
            Self::Failed(_) => ErrorKind::Internal,
        }
    }

    /// In words; empty for the kind's own hint.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::KeyReused => "use a new Idempotency-Key for a new request",
            Self::NotRetryable => "upload the document again",
            Self::InUse { .. } => "stop the other coordinator, or give this one its own data_dir",
            Self::QueueFull { .. } => "let the queue drain, then send again",
            _ => "",
        }
    }
}

impl From<sqlx::Error> for CatalogError {
    fn from(error: sqlx::Error) -> Self {
        // SQLITE_FULL is 13; extended codes keep it in the low byte.
        let is_full = |code: &str| code.parse::<u32>().is_ok_and(|code| code & 0xff == 13);
        match &error {
            sqlx::Error::Database(database) if database.code().is_some_and(|code| is_full(&code)) => Self::Full,
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// How to open the catalog.
#[derive(Clone, Debug)]
pub struct CatalogOptions {
    /// `sqlite://PATH`.
    pub url: String,
    /// Connections kept open.
    pub pool_size: u32,
    /// Connections beyond, closed when given back.
    pub max_overflow: u32,
    /// Longest wait for a connection.
    pub pool_timeout: Duration,
}

/// The open catalog. Clones share it.
#[derive(Clone)]
pub struct Catalog {
    pool: SqlitePool,
    gate: Arc<Mutex<()>>,
    pool_timeout: Duration,
    /// Held while open; the operating system lets go of it however the process ends.
    _lock: Arc<File>,
}

/// The writer's turn with its open transaction.
pub(crate) struct WriteTransaction<'a> {
    pub(crate) transaction: Transaction<'static, Sqlite>,
    _turn: MutexGuard<'a, ()>,
}

impl WriteTransaction<'_> {
    /// Durable on return.
    pub(crate) async fn commit(self) -> Result<(), CatalogError> {
        Ok(self.transaction.commit().await?)
    }
}

impl Catalog {
    /// Opens or creates the file, applies migrations, and returns claimed jobs to the queue.
    pub async fn open(options: &CatalogOptions) -> Result<Self, CatalogError> {
        let path = options.url.strip_prefix("sqlite://").or_else(|| options.url.strip_prefix("sqlite:"));
        let path = path.ok_or_else(|| CatalogError::Failed(format!("unsupported url {:?}", options.url)))?;
        let path = Path::new(path.split('?').next().unwrap_or(path));
        let lock = lock_file(path)?;
        let connect = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        // sqlx knows no overflow: the maximum is size + overflow, and what is beyond the size is closed when given back.
        let pool_cell: Arc<OnceLock<SqlitePool>> = Arc::default();
        let kept = options.pool_size;
        let releasing = Arc::clone(&pool_cell);
        let pool = SqlitePoolOptions::new()
            .max_connections(options.pool_size.saturating_add(options.max_overflow))
            .acquire_timeout(options.pool_timeout)
            .test_before_acquire(true)
            .after_release(move |_, _| {
                let is_kept = releasing.get().is_none_or(|pool| pool.size() <= kept);
                Box::pin(async move { Ok(is_kept) })
            })
            .connect_with(connect)
            .await?;
        let _ = pool_cell.set(pool.clone());
        MIGRATIONS.run(&pool).await.map_err(|error| CatalogError::Failed(format!("migration: {error}")))?;
        let catalog = Self { pool, gate: Arc::default(), pool_timeout: options.pool_timeout, _lock: Arc::new(lock) };
        let resumed = catalog.release_leases().await?;
        if resumed > 0 {
            tracing::info!(jobs = resumed, "jobs of an earlier process are resumed");
        }
        Ok(catalog)
    }

    /// Closes all connections, after those in use are given back.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Open and idle connections.
    pub fn pool_counts(&self) -> (u32, usize) {
        (self.pool.size(), self.pool.num_idle())
    }

    /// Whether a connection answers.
    pub async fn check(&self) -> Result<(), CatalogError> {
        let mut connection = self.read().await?;
        sqlx::query("SELECT 1").execute(&mut *connection).await?;
        Ok(())
    }

    /// A connection to read with.
    pub(crate) async fn read(&self) -> Result<sqlx::pool::PoolConnection<Sqlite>, CatalogError> {
        match self.pool.acquire().await {
            Ok(connection) => Ok(connection),
            Err(sqlx::Error::PoolTimedOut) => {
                Err(CatalogError::Busy { what: "connection is free", waited: self.pool_timeout })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The writer's turn. Dropping it without commit rolls back.
    pub(crate) async fn write(&self) -> Result<WriteTransaction<'_>, CatalogError> {
        let turn = tokio::time::timeout(self.pool_timeout, self.gate.lock()).await;
        let turn = turn.map_err(|_| CatalogError::Busy { what: "turn to write", waited: self.pool_timeout })?;
        match self.pool.begin_with("BEGIN IMMEDIATE").await {
            Ok(transaction) => Ok(WriteTransaction { transaction, _turn: turn }),
            Err(sqlx::Error::PoolTimedOut) => {
                Err(CatalogError::Busy { what: "connection is free", waited: self.pool_timeout })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Takes the lock beside the database, or says who is in the way.
fn lock_file(database: &Path) -> Result<File, CatalogError> {
    let failed = |error: std::io::Error| CatalogError::Failed(format!("{}: {error}", database.display()));
    if let Some(parent) = database.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    let path = PathBuf::from(name);
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(CatalogError::InUse { path }),
        Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}
