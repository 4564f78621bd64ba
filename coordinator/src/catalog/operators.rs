//! What operators set and did: aliases of collections, and the audit log.

use sqlx::Row;
use sqlx::any::AnyRow;
use uuid::Uuid;

use super::{Catalog, CatalogError, storable};

/// One administrative call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    /// UUIDv7: in the order of time.
    pub audit_id: Uuid,
    /// Unix milliseconds.
    pub at_ms: i64,
    /// The caller's tenant.
    pub tenant: String,
    /// The caller's key; `None` where none was required, or the operator's from the environment was used.
    pub key_id: Option<Uuid>,
    /// Of the request.
    pub request_id: String,
    /// Method and route.
    pub action: String,
    /// The path that was called.
    pub target: String,
    /// How it was answered.
    pub status: u16,
}

impl Catalog {
    /// Appends to the audit log.
    pub async fn append_audit(&self, row: &AuditRow) -> Result<(), CatalogError> {
        let mut write = self.write().await?;
        sqlx::query(
            "INSERT INTO audit (audit_id, at_ms, tenant, key_id, request_id, action, target, status)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(row.audit_id.to_string())
        .bind(row.at_ms)
        .bind(&*row.tenant)
        .bind(row.key_id.map(|id| id.to_string()))
        .bind(&*row.request_id)
        .bind(&*row.action)
        .bind(&*storable(&row.target))
        .bind(i64::from(row.status))
        .execute(&mut *write.transaction)
        .await?;
        write.commit().await
    }

    /// Administrative calls before `before` (an id; the newest where it is `None`), newest first, at most `limit`.
    pub async fn audit(&self, before: Option<Uuid>, limit: u32) -> Result<Vec<AuditRow>, CatalogError> {
        let mut connection = self.read().await?;
        let rows = sqlx::query(
            "SELECT audit_id, at_ms, tenant, key_id, request_id, action, target, status FROM audit
             WHERE audit_id < $1 ORDER BY audit_id DESC LIMIT $2",
        )
        .bind(before.unwrap_or(Uuid::max()).to_string())
        .bind(i64::from(limit))
        .fetch_all(&mut *connection)
        .await?;
        rows.iter().map(audit_row).collect()
    }

    /// All aliases: (alias, collection), in their order.
    pub async fn aliases(&self) -> Result<Vec<(String, String)>, CatalogError> {
        let mut connection = self.read().await?;
        let rows =
            sqlx::query("SELECT alias, collection FROM aliases ORDER BY alias").fetch_all(&mut *connection).await?;
        rows.iter().map(|row| Ok((row.try_get("alias")?, row.try_get("collection")?))).collect()
    }

    /// Lets an alias name a collection: one statement, so that readers see the old or the new one.
    pub async fn put_alias(&self, alias: &str, collection: &str) -> Result<(), CatalogError> {
        let mut write = self.write().await?;
        let now = write.now_ms().await?;
        sqlx::query(
            "INSERT INTO aliases (alias, collection, updated_ms) VALUES ($1, $2, $3)
             ON CONFLICT (alias) DO UPDATE SET collection = excluded.collection, updated_ms = excluded.updated_ms",
        )
        .bind(alias)
        .bind(collection)
        .bind(now)
        .execute(&mut *write.transaction)
        .await?;
        write.commit().await
    }

    /// Removes an alias. Whether it was there.
    pub async fn delete_alias(&self, alias: &str) -> Result<bool, CatalogError> {
        let mut write = self.write().await?;
        let deleted = sqlx::query("DELETE FROM aliases WHERE alias = $1")
            .bind(alias)
            .execute(&mut *write.transaction)
            .await?
            .rows_affected();
        write.commit().await?;
        Ok(deleted > 0)
    }
}

fn audit_row(row: &AnyRow) -> Result<AuditRow, CatalogError> {
    let id =
        |text: &str| Uuid::parse_str(text).map_err(|error| CatalogError::Failed(format!("audit id {text:?}: {error}")));
    let key_id: Option<String> = row.try_get("key_id")?;
    Ok(AuditRow {
        audit_id: id(&row.try_get::<String, _>("audit_id")?)?,
        at_ms: row.try_get("at_ms")?,
        tenant: row.try_get("tenant")?,
        key_id: key_id.as_deref().map(id).transpose()?,
        request_id: row.try_get("request_id")?,
        action: row.try_get("action")?,
        target: row.try_get("target")?,
        status: u16::try_from(row.try_get::<i64, _>("status")?).unwrap_or(0),
    })
}
