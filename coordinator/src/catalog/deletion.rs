//! Deleting: of documents whichever way they are named, and of collections. One transaction takes the rows with their uploads and
//! texts, ends the jobs, forgets what these had done, and gives the bytes back to their tenants.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, Row};

use super::documents::as_stored;
use super::tenants::count_stored;
use super::{Catalog, CatalogError, parameters};

/// What the jobs of deleted documents are told.
pub const DELETED: &str = "the document was deleted";
/// What the jobs of documents are told whose place a point took.
pub const REPLACED: &str = "a point took the document's place";

/// Ids that one statement asks for.
const IDS_PER_QUERY: usize = 1000;

/// Documents by what they have in common, in `documents` and in `jobs`.
#[derive(Clone, Copy)]
enum Selection<'a> {
    /// Of one tenant in one collection, by id.
    Named { collection_id: i64, tenant: &'a str, ids: &'a [String] },
    /// Everybody's in one collection.
    Collection(i64),
}

impl<'a> Selection<'a> {
    /// The condition on their rows: parameters 1 to [`parameters`](Self::parameters).
    fn condition(&self) -> String {
        match self {
            Self::Named { ids, .. } => {
                format!("collection_id = $1 AND tenant = $2 AND document_id IN ({})", parameters(3, ids.len()))
            }
            Self::Collection(_) => "collection_id = $1".to_owned(),
        }
    }

    /// How many parameters the condition has.
    fn parameters(&self) -> usize {
        match self {
            Self::Named { ids, .. } => 2 + ids.len(),
            Self::Collection(_) => 1,
        }
    }

    /// `sql` with the condition's parameters. The text for several documents hardly comes again.
    fn query(&self, sql: String) -> Query<'a, Any, AnyArguments> {
        let query = sqlx::query(sqlx::AssertSqlSafe(sql));
        match *self {
            Self::Named { collection_id, tenant, ids } => {
                let query = query.persistent(ids.len() == 1).bind(collection_id).bind(tenant);
                ids.iter().fold(query, |query, id| query.bind(id.as_str()))
            }
            Self::Collection(collection_id) => query.bind(collection_id),
        }
    }
}

impl Catalog {
    /// Those of the tenant's ids that it has rows of: uploaded, indexed or not.
    pub async fn known_documents(
        &self,
        collection_id: u64,
        tenant: &str,
        ids: &[String],
    ) -> Result<Vec<String>, CatalogError> {
        let mut connection = self.read().await?;
        let mut known = Vec::new();
        for ids in ids.chunks(IDS_PER_QUERY) {
            let named = Selection::Named { collection_id: as_stored(collection_id), tenant, ids };
            let sql = format!("SELECT document_id FROM documents WHERE {}", named.condition());
            for row in named.query(sql).fetch_all(&mut *connection).await? {
                known.push(row.try_get("document_id")?);
            }
        }
        Ok(known)
    }

    /// Removes documents of a tenant, whether known or not, and ends their jobs, which are told the `reason`. The number of those that
    /// were there.
    ///
    /// Whoever also changes them in the shards holds their locks meanwhile: see [`lock_documents`](Self::lock_documents).
    pub async fn delete_documents(
        &self,
        collection_id: u64,
        tenant: &str,
        ids: &[String],
        reason: &str,
    ) -> Result<u64, CatalogError> {
        if ids.is_empty() {
            return Ok(0);
        }
        self.forget(Selection::Named { collection_id: as_stored(collection_id), tenant, ids }, reason).await
    }

    /// Removes all that belongs to a deleted collection.
    pub async fn delete_collection(&self, collection_id: u64) -> Result<(), CatalogError> {
        self.forget(Selection::Collection(as_stored(collection_id)), "the collection was deleted").await.map(drop)
    }

    async fn forget(&self, selection: Selection<'_>, reason: &str) -> Result<u64, CatalogError> {
        let condition = selection.condition();
        let (reason_at, now_at) = (selection.parameters() + 1, selection.parameters() + 2);
        let mut write = self.write().await?;
        let now = write.now_ms().await?;
        let connection = &mut *write.transaction;
        // Tenants in the order of their names: locks are taken in one order.
        let (mut deleted, mut freed) = (0, BTreeMap::<String, i64>::new());
        let delete = format!("DELETE FROM documents WHERE {condition} RETURNING tenant, content_bytes");
        let mut rows = selection.query(delete).fetch(&mut *connection);
        while let Some(row) = rows.try_next().await? {
            deleted += 1;
            *freed.entry(row.try_get("tenant")?).or_default() += row.try_get::<i64, _>("content_bytes")?;
        }
        drop(rows);
        // The job of an upload that came in just now is its own.
        selection
            .query(format!(
                "UPDATE jobs SET state = 'cancelled', error_message = ${reason_at}, lease_until_ms = NULL,
                     updated_ms = ${now_at}
                 WHERE {condition} AND state NOT IN ('done', 'failed', 'cancelled')
                   AND NOT EXISTS (SELECT 1 FROM documents d WHERE d.job_id = jobs.job_id)"
            ))
            .bind(reason)
            .bind(now)
            .execute(&mut *connection)
            .await?;
        selection
            .query(format!("DELETE FROM job_stages WHERE job_id IN (SELECT job_id FROM jobs WHERE {condition})"))
            .execute(&mut *connection)
            .await?;
        for (tenant, content_bytes) in freed {
            count_stored(connection, &tenant, -content_bytes).await?;
        }
        write.commit().await?;
        Ok(deleted)
    }
}
