//! Deleting: of documents whichever way they are named, and of collections. One transaction takes the rows with their uploads and
//! texts, ends the jobs, forgets what these had done, and gives the bytes back to the tenant.

use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, Row};

use super::documents::as_stored;
use super::tenants::count_stored;
use super::{Catalog, CatalogError, parameters};

/// Documents of one tenant in one collection.
struct Named<'a> {
    collection_id: i64,
    tenant: &'a str,
    ids: &'a [String],
}

impl<'a> Named<'a> {
    /// The condition on their rows, in `documents` and in `jobs`: parameters 1 to `2 + ids`.
    fn condition(&self) -> String {
        format!("collection_id = $1 AND tenant = $2 AND document_id IN ({})", parameters(3, self.ids.len()))
    }

    /// The parameter behind those of the condition.
    fn next_parameter(&self) -> usize {
        3 + self.ids.len()
    }

    /// `sql` with the condition's parameters. Only the text for one document comes again and again.
    fn query(&self, sql: String) -> Query<'a, Any, AnyArguments> {
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(self.ids.len() == 1);
        self.ids.iter().fold(query.bind(self.collection_id).bind(self.tenant), |query, id| query.bind(id.as_str()))
    }
}

impl Catalog {
    /// Removes documents of a tenant, whether known or not, and ends their jobs. The number of those that were there.
    ///
    /// Whoever also deletes them from the shards holds their locks meanwhile: see [`lock_documents`](Self::lock_documents).
    pub async fn delete_documents(
        &self,
        collection_id: u64,
        tenant: &str,
        ids: &[String],
    ) -> Result<u64, CatalogError> {
        if ids.is_empty() {
            return Ok(0);
        }
        let named = Named { collection_id: as_stored(collection_id), tenant, ids };
        let (condition, at) = (named.condition(), named.next_parameter());
        let mut write = self.write().await?;
        let now = write.now_ms().await?;
        let connection = &mut *write.transaction;
        let deleted = named
            .query(format!("DELETE FROM documents WHERE {condition} RETURNING content_bytes"))
            .fetch_all(&mut *connection)
            .await?;
        // The job of an upload that came in just now is its own.
        named
            .query(format!(
                "UPDATE jobs SET state = 'cancelled', error_message = 'the document was deleted', lease_until_ms = NULL,
                     updated_ms = ${at}
                 WHERE {condition} AND state NOT IN ('done', 'failed', 'cancelled')
                   AND NOT EXISTS (SELECT 1 FROM documents d WHERE d.job_id = jobs.job_id)"
            ))
            .bind(now)
            .execute(&mut *connection)
            .await?;
        named
            .query(format!("DELETE FROM job_stages WHERE job_id IN (SELECT job_id FROM jobs WHERE {condition})"))
            .execute(&mut *connection)
            .await?;
        let mut content_bytes = 0_i64;
        for row in &deleted {
            content_bytes += row.try_get::<i64, _>("content_bytes")?;
        }
        if content_bytes > 0 {
            count_stored(connection, tenant, -content_bytes).await?;
        }
        write.commit().await?;
        Ok(deleted.len() as u64)
    }

    /// Removes all that belongs to a deleted collection.
    pub async fn delete_collection(&self, collection_id: u64) -> Result<(), CatalogError> {
        let mut write = self.write().await?;
        let now = write.now_ms().await?;
        let connection = &mut *write.transaction;
        let stored: Vec<(String, i64)> = sqlx::query_as(
            "SELECT tenant, CAST(sum(content_bytes) AS BIGINT) FROM documents WHERE collection_id = $1
             GROUP BY tenant ORDER BY tenant",
        )
        .bind(as_stored(collection_id))
        .fetch_all(&mut *connection)
        .await?;
        sqlx::query("DELETE FROM documents WHERE collection_id = $1")
            .bind(as_stored(collection_id))
            .execute(&mut *connection)
            .await?;
        sqlx::query(
            "UPDATE jobs SET state = 'cancelled', error_message = 'the collection was deleted', lease_until_ms = NULL,
                 updated_ms = $2
             WHERE collection_id = $1 AND state NOT IN ('done', 'failed', 'cancelled')",
        )
        .bind(as_stored(collection_id))
        .bind(now)
        .execute(&mut *connection)
        .await?;
        sqlx::query("DELETE FROM job_stages WHERE job_id IN (SELECT job_id FROM jobs WHERE collection_id = $1)")
            .bind(as_stored(collection_id))
            .execute(&mut *connection)
            .await?;
        for (tenant, content_bytes) in stored {
            count_stored(connection, &tenant, -content_bytes).await?;
        }
        write.commit().await
    }
}
