//! Tenants, their limits, and what they have used.

use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Catalog, CatalogError, get_u64, row_parameters, storable};

/// A tenant's limits; `None` is no limit. Requests and tokens are counted over all coordinators that share a Redis, else by each for itself;
/// streams by each for itself; stored bytes in the catalog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantLimits {
    /// Requests of any kind.
    pub requests_per_second: Option<u32>,
    /// Tokens read and written by language models.
    pub tokens_per_minute: Option<u32>,
    /// Streams open at one time.
    pub streams_max: Option<u32>,
    /// Bytes of its uploaded documents.
    pub stored_bytes_max: Option<u64>,
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantRow {
    /// Its name.
    pub tenant: String,
    /// Its keys are refused.
    pub disabled: bool,
    /// What it may use.
    pub limits: TenantLimits,
    /// Bytes of its uploaded documents.
    pub stored_bytes: u64,
    /// Unix milliseconds.
    pub created_ms: i64,
}

/// Tokens of a tenant on one day with one model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageRow {
    /// Whose.
    pub tenant: String,
    /// Days since 1970.
    pub day: i64,
    /// The model.
    pub model: String,
    /// Answers.
    pub requests: u64,
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
}

/// Rows of one INSERT: six parameters each, and either engine takes more than 30,000.
const ROWS_PER_INSERT: usize = 100;

const TENANT_COLUMNS: &str = "tenant, disabled, requests_per_second, tokens_per_minute, streams_max, stored_bytes_max, \
                              stored_bytes, created_ms";

impl Catalog {
    /// Makes a tenant, or changes its settings. Its row afterwards.
    pub async fn put_tenant(
        &self,
        tenant: &str,
        disabled: bool,
        limits: TenantLimits,
    ) -> Result<TenantRow, CatalogError> {
        let mut write = self.write().await?;
        let now = write.now_ms().await?;
        let sql = sqlx::AssertSqlSafe(format!(
            "INSERT INTO tenants (tenant, disabled, requests_per_second, tokens_per_minute, streams_max, stored_bytes_max,
                 created_ms, updated_ms)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
             ON CONFLICT (tenant) DO UPDATE SET disabled = excluded.disabled,
                 requests_per_second = excluded.requests_per_second, tokens_per_minute = excluded.tokens_per_minute,
                 streams_max = excluded.streams_max, stored_bytes_max = excluded.stored_bytes_max,
                 updated_ms = excluded.updated_ms
             RETURNING {TENANT_COLUMNS}"
        ));
        let row = sqlx::query(sql)
            .bind(tenant)
            .bind(i64::from(disabled))
            .bind(limits.requests_per_second.map(i64::from))
            .bind(limits.tokens_per_minute.map(i64::from))
            .bind(limits.streams_max.map(i64::from))
            .bind(limits.stored_bytes_max.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)))
            .bind(now)
            .fetch_one(&mut *write.transaction)
            .await?;
        write.commit().await?;
        tenant_row(&row)
    }

    /// A tenant.
    pub async fn tenant(&self, tenant: &str) -> Result<Option<TenantRow>, CatalogError> {
        let mut connection = self.read().await?;
        let sql = sqlx::AssertSqlSafe(format!("SELECT {TENANT_COLUMNS} FROM tenants WHERE tenant = $1"));
        let row = sqlx::query(sql).bind(&*storable(tenant)).fetch_optional(&mut *connection).await?;
        row.as_ref().map(tenant_row).transpose()
    }

    /// Tenants with names after `after`, in their order, at most `limit`.
    pub async fn tenants(&self, after: &str, limit: u32) -> Result<Vec<TenantRow>, CatalogError> {
        let mut connection = self.read().await?;
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {TENANT_COLUMNS} FROM tenants WHERE tenant > $1 ORDER BY tenant LIMIT $2"
        ));
        let rows = sqlx::query(sql).bind(&*storable(after)).bind(i64::from(limit)).fetch_all(&mut *connection).await?;
        rows.iter().map(tenant_row).collect()
    }

    /// Adds to what was used, all rows in one transaction. Rows differ in tenant, day or model.
    pub async fn add_usage(&self, rows: &[UsageRow]) -> Result<(), CatalogError> {
        let stored = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let mut write = self.write().await?;
        for rows in rows.chunks(ROWS_PER_INSERT) {
            let sql = format!(
                "INSERT INTO usage (tenant, day, model, requests, prompt_tokens, completion_tokens)
                 VALUES {}
                 ON CONFLICT (tenant, day, model) DO UPDATE SET requests = usage.requests + excluded.requests,
                     prompt_tokens = usage.prompt_tokens + excluded.prompt_tokens,
                     completion_tokens = usage.completion_tokens + excluded.completion_tokens",
                row_parameters(rows.len(), 6)
            );
            let mut insert = sqlx::query(sqlx::AssertSqlSafe(sql));
            for row in rows {
                insert = insert
                    .bind(&*row.tenant)
                    .bind(row.day)
                    .bind(storable(&row.model).into_owned())
                    .bind(stored(row.requests))
                    .bind(stored(row.prompt_tokens))
                    .bind(stored(row.completion_tokens));
            }
            insert.execute(&mut *write.transaction).await?;
        }
        write.commit().await
    }

    /// What a tenant used from `first_day` to `last_day`, both included, in the order of days, at most `limit` rows.
    pub async fn usage(
        &self,
        tenant: &str,
        first_day: i64,
        last_day: i64,
        limit: u32,
    ) -> Result<Vec<UsageRow>, CatalogError> {
        let mut connection = self.read().await?;
        let rows = sqlx::query(
            "SELECT tenant, day, model, requests, prompt_tokens, completion_tokens FROM usage
             WHERE tenant = $1 AND day >= $2 AND day <= $3 ORDER BY day, model LIMIT $4",
        )
        .bind(tenant)
        .bind(first_day)
        .bind(last_day)
        .bind(i64::from(limit))
        .fetch_all(&mut *connection)
        .await?;
        let read = |row: &AnyRow| {
            Ok(UsageRow {
                tenant: row.try_get("tenant")?,
                day: row.try_get("day")?,
                model: row.try_get("model")?,
                requests: get_u64(row, "requests")?,
                prompt_tokens: get_u64(row, "prompt_tokens")?,
                completion_tokens: get_u64(row, "completion_tokens")?,
            })
        };
        rows.iter().map(read).collect()
    }
}

/// Counts stored bytes, within the transaction that stores or deletes them. Errors: `StoredBytes` where the tenant's bound is met.
///
/// A tenant without a row has no bound and is not counted.
pub(super) async fn count_stored(
    connection: &mut sqlx::AnyConnection,
    tenant: &str,
    change: i64,
) -> Result<(), CatalogError> {
    let counted = sqlx::query(
        "UPDATE tenants SET stored_bytes = stored_bytes + $2
         WHERE tenant = $1 AND ($2 <= 0 OR stored_bytes_max IS NULL OR stored_bytes + $2 <= stored_bytes_max)",
    )
    .bind(tenant)
    .bind(change)
    .execute(&mut *connection)
    .await?
    .rows_affected();
    if counted == 1 {
        return Ok(());
    }
    let bound: Option<i64> = sqlx::query_scalar("SELECT coalesce(stored_bytes_max, 0) FROM tenants WHERE tenant = $1")
        .bind(tenant)
        .fetch_optional(connection)
        .await?;
    match bound {
        None => Ok(()),
        Some(bytes_max) => Err(CatalogError::StoredBytes { bytes_max: u64::try_from(bytes_max).unwrap_or(0) }),
    }
}

fn tenant_row(row: &AnyRow) -> Result<TenantRow, CatalogError> {
    let bound = |column: &str| -> Result<Option<u32>, CatalogError> {
        Ok(row.try_get::<Option<i64>, _>(column)?.map(|bound| u32::try_from(bound).unwrap_or(u32::MAX)))
    };
    Ok(TenantRow {
        tenant: row.try_get("tenant")?,
        disabled: row.try_get::<i64, _>("disabled")? != 0,
        limits: TenantLimits {
            requests_per_second: bound("requests_per_second")?,
            tokens_per_minute: bound("tokens_per_minute")?,
            streams_max: bound("streams_max")?,
            stored_bytes_max: row
                .try_get::<Option<i64>, _>("stored_bytes_max")?
                .map(|bytes| u64::try_from(bytes).unwrap_or(0)),
        },
        stored_bytes: get_u64(row, "stored_bytes")?,
        created_ms: row.try_get("created_ms")?,
    })
}
