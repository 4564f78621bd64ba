//! API keys: hashed, of one tenant, with one scope. Their times are the database's, so that a key ends at all coordinators at once,
//! whatever their own clocks say.

use std::time::Duration;

use sqlx::Row;
use sqlx::any::AnyRow;
use uuid::Uuid;

use super::engine::Engine;
use super::{Catalog, CatalogError, storable};

/// What a key allows. Each scope includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Search, ask, look at documents.
    Read,
    /// Upload and delete documents and points.
    Write,
    /// Operate the cluster: collections, nodes, tenants, keys.
    Admin,
}

impl Scope {
    /// Every scope, smallest first.
    pub const ALL: [Scope; 3] = [Self::Read, Self::Write, Self::Admin];

    /// As stored and as written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    /// The inverse.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text)
    }
}

/// A key to be made.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its id; not secret.
    pub key_id: Uuid,
    /// Whose documents it opens.
    pub tenant: String,
    /// What it is for, in its maker's words.
    pub name: String,
    /// The largest scope it has.
    pub scope: Scope,
    /// From now on; `None`: for ever.
    pub valid_ms: Option<i64>,
}

/// A key without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// Its id; not secret.
    pub key_id: Uuid,
    /// Whose documents it opens.
    pub tenant: String,
    /// What it is for, in its maker's words.
    pub name: String,
    /// The largest scope it has.
    pub scope: Scope,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// Refused from here on.
    pub expires_ms: Option<i64>,
    /// Refused since.
    pub revoked_ms: Option<i64>,
    /// When this was read.
    pub read_ms: i64,
}

impl KeyRow {
    /// Whether it opens anything that long after it was read.
    pub fn is_valid_after(&self, age: Duration) -> bool {
        let now_ms = self.read_ms.saturating_add(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        self.revoked_ms.is_none() && self.expires_ms.is_none_or(|expires_ms| now_ms < expires_ms)
    }
}

fn key_columns(engine: Engine) -> String {
    format!("key_id, tenant, name, scope, created_ms, expires_ms, revoked_ms, {} AS read_ms", engine.now_ms())
}

impl Catalog {
    /// Stores a key by its hash. `None`: there is no such tenant.
    pub async fn create_key(&self, key: &NewKey, key_hash: &[u8; 32]) -> Result<Option<KeyRow>, CatalogError> {
        let mut write = self.write().await?;
        let now = write.now_ms().await?;
        let sql = sqlx::AssertSqlSafe(format!(
            "INSERT INTO api_keys (key_id, key_hash, tenant, name, scope, created_ms, expires_ms)
             SELECT $1, $2, tenant, $4, $5, $6, $7 FROM tenants WHERE tenant = $3 RETURNING {}",
            key_columns(self.engine())
        ));
        let row = sqlx::query(sql)
            .bind(key.key_id.to_string())
            .bind(&key_hash[..])
            .bind(&*key.tenant)
            .bind(&*storable(&key.name))
            .bind(key.scope.as_str())
            .bind(now)
            .bind(key.valid_ms.map(|valid_ms| now.saturating_add(valid_ms)))
            .fetch_optional(&mut *write.transaction)
            .await?;
        write.commit().await?;
        row.as_ref().map(key_row).transpose()
    }

    /// The key of that hash, valid or not.
    pub async fn key_by_hash(&self, key_hash: &[u8; 32]) -> Result<Option<KeyRow>, CatalogError> {
        let mut connection = self.read().await?;
        let columns = key_columns(self.engine());
        let sql = sqlx::AssertSqlSafe(format!("SELECT {columns} FROM api_keys WHERE key_hash = $1"));
        let row = sqlx::query(sql).bind(&key_hash[..]).fetch_optional(&mut *connection).await?;
        row.as_ref().map(key_row).transpose()
    }

    /// Keys of a tenant with ids after `after`, oldest first, at most `limit`.
    pub async fn keys(&self, tenant: &str, after: &str, limit: u32) -> Result<Vec<KeyRow>, CatalogError> {
        let mut connection = self.read().await?;
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {} FROM api_keys WHERE tenant = $1 AND key_id > $2 ORDER BY key_id LIMIT $3",
            key_columns(self.engine())
        ));
        let rows = sqlx::query(sql)
            .bind(&*storable(tenant))
            .bind(&*storable(after))
            .bind(i64::from(limit))
            .fetch_all(&mut *connection)
            .await?;
        rows.iter().map(key_row).collect()
    }

    /// Ends a key. Repeating changes nothing. `None`: no such key.
    pub async fn revoke_key(&self, key_id: Uuid) -> Result<Option<KeyRow>, CatalogError> {
        let mut write = self.write().await?;
        let now = write.now_ms().await?;
        let sql = sqlx::AssertSqlSafe(format!(
            "UPDATE api_keys SET revoked_ms = coalesce(revoked_ms, $2) WHERE key_id = $1 RETURNING {}",
            key_columns(self.engine())
        ));
        let row = sqlx::query(sql).bind(key_id.to_string()).bind(now).fetch_optional(&mut *write.transaction).await?;
        write.commit().await?;
        row.as_ref().map(key_row).transpose()
    }
}

fn key_row(row: &AnyRow) -> Result<KeyRow, CatalogError> {
    let (key_id, scope): (String, String) = (row.try_get("key_id")?, row.try_get("scope")?);
    let unreadable = |what: &str| CatalogError::Failed(format!("key {key_id}: unreadable {what}"));
    Ok(KeyRow {
        key_id: Uuid::parse_str(&key_id).map_err(|_| unreadable("id"))?,
        tenant: row.try_get("tenant")?,
        name: row.try_get("name")?,
        scope: Scope::parse(&scope).ok_or_else(|| unreadable("scope"))?,
        created_ms: row.try_get("created_ms")?,
        expires_ms: row.try_get("expires_ms")?,
        revoked_ms: row.try_get("revoked_ms")?,
        read_ms: row.try_get("read_ms")?,
    })
}
