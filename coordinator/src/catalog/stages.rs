//! Results of a job's stages, kept until the job ends.

use super::jobs::Claim;
use super::{Catalog, CatalogError};

/// A kept result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The parsed text.
    Parsed,
    /// Vectors, by the hash of what was embedded.
    Vectors(u128),
}

impl Part {
    fn name(self) -> String {
        match self {
            Self::Parsed => "parsed".to_owned(),
            Self::Vectors(hash) => format!("{hash:032x}"),
        }
    }
}

impl Catalog {
    /// What an earlier claim of this job left.
    pub async fn stage(&self, claim: &Claim, part: Part) -> Result<Option<Vec<u8>>, CatalogError> {
        let mut connection = self.read().await?;
        let body = sqlx::query_scalar("SELECT body FROM job_stages WHERE job_id = $1 AND part = $2")
            .bind(claim.job_id.to_string())
            .bind(part.name())
            .fetch_optional(&mut *connection)
            .await?;
        Ok(body)
    }

    /// Keeps a result, as long as the claim holds: a result that is there stays, because it is the same.
    pub async fn keep_stage(&self, claim: &Claim, part: Part, body: &[u8]) -> Result<(), CatalogError> {
        let mut write = self.write().await?;
        // The job's row is held: a deletion that ends the job either finds this result or keeps it out.
        let sql = format!(
            "INSERT INTO job_stages (job_id, part, body)
             SELECT job_id, $3, $4 FROM jobs
             WHERE job_id = $1 AND attempt = $2 AND state NOT IN ('done', 'failed', 'cancelled') {}
             ON CONFLICT (job_id, part) DO NOTHING",
            self.engine().for_share()
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(claim.job_id.to_string())
            .bind(i64::from(claim.attempt))
            .bind(part.name())
            .bind(body)
            .execute(&mut *write.transaction)
            .await?;
        write.commit().await
    }

    /// Forgets the results of jobs that have ended. Retried jobs begin anew.
    pub async fn forget_stages(&self) -> Result<u64, CatalogError> {
        let mut write = self.write().await?;
        let forgotten = sqlx::query(
            "DELETE FROM job_stages WHERE job_id NOT IN
                 (SELECT job_id FROM jobs WHERE state NOT IN ('done', 'failed', 'cancelled'))",
        )
        .execute(&mut *write.transaction)
        .await?
        .rows_affected();
        write.commit().await?;
        Ok(forgotten)
    }
}
