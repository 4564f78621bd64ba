//! What differs between SQLite and Postgres: how a connection is opened, how a writer gets its turn, a handful of SQL words, and what
//! error codes mean. Everything else in the catalog is one text of SQL with `$1` parameters, which both understand.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use sqlx::any::AnyPoolOptions;
use sqlx::migrate::Migrator;
use sqlx::{AnyPool, Executor};

use super::{CatalogError, CatalogOptions};

static SQLITE_MIGRATIONS: Migrator = sqlx::migrate!("./migrations/sqlite");
static POSTGRES_MIGRATIONS: Migrator = sqlx::migrate!("./migrations/postgres");

/// What every connection is told first. Waits inside the database end after five seconds: in SQLite those for another process (a
/// backup tool, a shell), for the writer's gate orders our own; in Postgres those for rows of other transactions, which take
/// milliseconds.
const SQLITE_SETTINGS: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000;";
const POSTGRES_SETTINGS: &str = "SET synchronous_commit = on; SET lock_timeout = 5000;";

/// The database behind the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// A file of this process: one writer, many readers.
    Sqlite,
    /// A server that several coordinators share.
    Postgres,
}

impl Engine {
    /// By the URL's scheme.
    pub fn of(url: &str) -> Result<Self, CatalogError> {
        match url.split_once(':') {
            Some(("sqlite", _)) => Ok(Self::Sqlite),
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres),
            // The URL may hold a password: only its scheme is shown.
            other => {
                let scheme = other.map_or("", |(scheme, _)| scheme);
                Err(CatalogError::Failed(format!("unsupported scheme {scheme:?} in the catalog's url")))
            }
        }
    }

    /// As in metrics and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }

    /// Ends a `SELECT` of rows to be claimed: rows that another coordinator is claiming are passed over. SQLite has one writer.
    pub(super) fn for_update_skip_locked(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => "FOR UPDATE SKIP LOCKED",
        }
    }

    /// Ends a `SELECT` of rows that must stay as they are until this transaction ends. SQLite has one writer.
    pub(super) fn for_share(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => "FOR SHARE",
        }
    }

    /// An expression: now, Unix milliseconds. Not the time at which the transaction began, which may have waited for a row since.
    pub(super) fn now_ms(self) -> &'static str {
        match self {
            Self::Sqlite => "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
            Self::Postgres => "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)",
        }
    }

    /// How a writing transaction begins. SQLite takes the write lock at once instead of failing half-way.
    pub(super) fn begin(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres => "BEGIN",
        }
    }

    pub(super) fn migrations(self) -> &'static Migrator {
        match self {
            Self::Sqlite => &SQLITE_MIGRATIONS,
            Self::Postgres => &POSTGRES_MIGRATIONS,
        }
    }

    /// Opens the pool with the durability that the catalog promises, whatever the server's own settings are.
    pub(super) async fn connect(self, options: &CatalogOptions) -> Result<AnyPool, CatalogError> {
        sqlx::any::install_default_drivers();
        let url = match self {
            Self::Sqlite if options.url.contains('?') => options.url.clone(),
            Self::Sqlite => format!("{}?mode=rwc", options.url),
            Self::Postgres => options.url.clone(),
        };
        let settings = match self {
            Self::Sqlite => SQLITE_SETTINGS,
            Self::Postgres => POSTGRES_SETTINGS,
        };
        // sqlx knows no overflow: the maximum is size + overflow, and what is beyond the size is closed when given back.
        let pool_cell: Arc<OnceLock<AnyPool>> = Arc::default();
        let kept = options.pool_size;
        let releasing = Arc::clone(&pool_cell);
        let pool = AnyPoolOptions::new()
            .max_connections(options.connections_max())
            .acquire_timeout(options.pool_timeout)
            .test_before_acquire(true)
            .after_connect(move |connection, _| Box::pin(async move { connection.execute(settings).await.map(drop) }))
            .after_release(move |_, _| {
                let is_kept = releasing.get().is_none_or(|pool| pool.size() <= kept);
                Box::pin(async move { Ok(is_kept) })
            })
            .connect(&url)
            .await?;
        let _ = pool_cell.set(pool.clone());
        Ok(pool)
    }
}

/// The file of an SQLite URL.
pub(super) fn sqlite_path(url: &str) -> PathBuf {
    let path = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")).unwrap_or(url);
    PathBuf::from(path.split('?').next().unwrap_or(path))
}

/// Takes the lock beside an SQLite file, or says who is in the way. The operating system lets go of it however the process ends.
pub(super) fn lock_file(database: &Path) -> Result<File, CatalogError> {
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

/// What a database's error code means to a caller. SQLite's are numbers (the extended ones keep the primary in the low byte),
/// Postgres' are five characters (SQLSTATE).
pub(super) fn read_code(code: &str, text: &str) -> CatalogError {
    const SQLITE_BUSY: u32 = 5;
    const SQLITE_FULL: u32 = 13;
    let contended = || CatalogError::Contended(text.to_owned());
    match code {
        "53100" => CatalogError::Full,
        // lock_not_available, deadlock_detected, serialization_failure, too_many_connections, and out_of_memory: no room for
        // more locks
        "55P03" | "40P01" | "40001" | "53300" | "53200" => contended(),
        // admin_shutdown, crash_shutdown, cannot_connect_now, and the class of connection exceptions
        "57P01" | "57P02" | "57P03" => CatalogError::Unreachable(text.to_owned()),
        code if code.len() == 5 && code.starts_with("08") => CatalogError::Unreachable(text.to_owned()),
        code => match code.parse::<u32>().map(|code| code & 0xff) {
            Ok(SQLITE_FULL) if code.len() < 5 => CatalogError::Full,
            Ok(SQLITE_BUSY) if code.len() < 5 => contended(),
            _ => CatalogError::Failed(text.to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use cluster_config::error::ErrorKind;

    use super::*;

    #[test]
    fn codes_of_both_engines_are_told_apart() {
        for (code, kind) in [
            ("13", ErrorKind::StorageFull),
            ("53100", ErrorKind::StorageFull),
            ("5", ErrorKind::Overloaded),
            ("517", ErrorKind::Overloaded),
            ("40P01", ErrorKind::Overloaded),
            ("53200", ErrorKind::Overloaded),
            ("57P01", ErrorKind::Unavailable),
            ("08006", ErrorKind::Unavailable),
            ("2067", ErrorKind::Internal),
            ("23505", ErrorKind::Internal),
        ] {
            assert_eq!(read_code(code, "x").kind(), kind, "{code}");
        }
    }

    #[test]
    fn a_url_s_password_is_not_shown() {
        let error = Engine::of("mysql://u:secret@h/db").expect_err("unsupported");
        assert!(error.to_string().contains("mysql") && !error.to_string().contains("secret"), "{error}");
        assert_eq!(Engine::of("postgresql://u@h/db").ok(), Some(Engine::Postgres));
        assert_eq!(sqlite_path("sqlite:///a/b.db?mode=rwc"), PathBuf::from("/a/b.db"));
    }
}
