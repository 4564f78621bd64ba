//! API keys: hashed, of one tenant, with one scope.

use sqlx::Row;
use sqlx::any::AnyRow;
use uuid::Uuid;

use super::{Catalog, CatalogError, storable};
use crate::clock::unix_ms;

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
}

impl KeyRow {
    /// Whether it opens anything at that time.
    pub fn is_valid_at(&self, now_ms: i64) -> bool {
        self.revoked_ms.is_none() && self.expires_ms.is_none_or(|expires_ms| now_ms < expires_ms)
    }
}

const KEY_COLUMNS: &str = "key_id, tenant, name, scope, created_ms, expires_ms, revoked_ms";

impl Catalog {
    /// Stores a key by its hash. `false`: there is no such tenant.
    pub async fn create_key(&self, key: &KeyRow, key_hash: &[u8; 32]) -> Result<bool, CatalogError> {
        let mut write = self.write().await?;
        let inserted = sqlx::query(
            "INSERT INTO api_keys (key_id, key_hash, tenant, name, scope, created_ms, expires_ms)
             SELECT $1, $2, tenant, $4, $5, $6, $7 FROM tenants WHERE tenant = $3",
        )
        .bind(key.key_id.to_string())
        .bind(&key_hash[..])
        .bind(&*key.tenant)
        .bind(&*storable(&key.name))
        .bind(key.scope.as_str())
        .bind(key.created_ms)
        .bind(key.expires_ms)
        .execute(&mut *write.transaction)
        .await?
        .rows_affected();
        write.commit().await?;
        Ok(inserted == 1)
    }

    /// The key of that hash, valid or not.
    pub async fn key_by_hash(&self, key_hash: &[u8; 32]) -> Result<Option<KeyRow>, CatalogError> {
        let mut connection = self.read().await?;
        let sql = sqlx::AssertSqlSafe(format!("SELECT {KEY_COLUMNS} FROM api_keys WHERE key_hash = $1"));
        let row = sqlx::query(sql).bind(&key_hash[..]).fetch_optional(&mut *connection).await?;
        row.as_ref().map(key_row).transpose()
    }

    /// Keys of a tenant with ids after `after`, oldest first, at most `limit`.
    pub async fn keys(&self, tenant: &str, after: &str, limit: u32) -> Result<Vec<KeyRow>, CatalogError> {
        let mut connection = self.read().await?;
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {KEY_COLUMNS} FROM api_keys WHERE tenant = $1 AND key_id > $2 ORDER BY key_id LIMIT $3"
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
        let sql = sqlx::AssertSqlSafe(format!(
            "UPDATE api_keys SET revoked_ms = coalesce(revoked_ms, $2) WHERE key_id = $1 RETURNING {KEY_COLUMNS}"
        ));
        let row =
            sqlx::query(sql).bind(key_id.to_string()).bind(unix_ms()).fetch_optional(&mut *write.transaction).await?;
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
    })
}
