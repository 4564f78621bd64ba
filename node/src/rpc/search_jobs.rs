//! The searches of one call on the search pool: which copies share a job, and what a job gives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::error::ErrorKind;
use cluster_config::ids::ShardId;
use cluster_config::search::{ShardAnswer, ShardQuery};
use proto::convert::search::ShardReply;

use crate::copies::Copy;
use crate::error::Error;
use crate::telemetry::Metrics;
use crate::vector::Cancel;

/// Rows times queries that one job takes. Searching so few takes less than waking a second thread and sending a second reply.
const JOB_ROWS_MAX: u64 = 10_000;

/// Puts searches, each with the rows it may look at, into jobs: neighbours share one up to [`JOB_ROWS_MAX`], what is larger is alone.
pub(super) fn into_jobs<T>(searches: impl IntoIterator<Item = (u64, T)>) -> Vec<Vec<T>> {
    let mut jobs: Vec<Vec<T>> = Vec::new();
    let mut room = 0;
    for (rows, search) in searches {
        match jobs.last_mut() {
            Some(job) if rows <= room => {
                job.push(search);
                room -= rows;
            }
            _ => {
                jobs.push(vec![search]);
                room = JOB_ROWS_MAX.saturating_sub(rows);
            }
        }
    }
    jobs
}

/// The queries of a call, and what ends them.
#[derive(Clone)]
pub(super) struct SearchJob {
    pub(super) queries: Arc<[ShardQuery]>,
    pub(super) cancel: Cancel,
    pub(super) metrics: Arc<Metrics>,
    /// When the call came.
    pub(super) began: Instant,
}

/// What came of one copy.
pub(super) struct Searched {
    /// One answer per query.
    pub(super) outcome: Result<Vec<ShardAnswer>, Error>,
    /// Waiting for the thread, and for the copies before it in the job.
    pub(super) queued: Duration,
    /// Computing.
    pub(super) service: Duration,
}

impl Searched {
    pub(super) fn reply(self, shard: ShardId) -> ShardReply {
        let (queued_us, service_us) = (micros(self.queued), micros(self.service));
        ShardReply { shard, outcome: self.outcome, queued_us, service_us }
    }
}

impl SearchJob {
    /// Runs the queries on one copy after another. Blocks; belongs on the search pool.
    pub(super) fn run(self, copies: &[Arc<Copy>]) -> Vec<Searched> {
        copies.iter().map(|copy| self.search(copy)).collect()
    }

    fn search(&self, copy: &Copy) -> Searched {
        let queued = self.began.elapsed();
        let started = Instant::now();
        fail::fail_point!("search-begins");
        let outcome = search_copy(copy, &self.queries, &self.cancel);
        // Only the caller's leaving cancels, and then nobody is left to count it where replies are.
        if matches!(&outcome, Err(error) if error.kind == ErrorKind::Cancelled) {
            fail::fail_point!("search-cancelled");
            self.metrics.searches.with_label_values(&[ErrorKind::Cancelled.as_str()]).inc();
        }
        let service = started.elapsed();
        self.metrics.search_queue_seconds.observe(queued.as_secs_f64());
        self.metrics.search_service_seconds.observe(service.as_secs_f64());
        Searched { outcome, queued, service }
    }
}

/// The answers name the one position that they were computed at, in the term and at the age that the copy had at the beginning.
fn search_copy(copy: &Copy, queries: &[ShardQuery], cancel: &Cancel) -> Result<Vec<ShardAnswer>, Error> {
    let position = copy.handle.position();
    let mut answers = copy.shard.search_all(queries, cancel)?;
    for answer in &mut answers {
        answer.position.term = position.term;
        answer.position.staleness_ms = position.staleness_ms;
    }
    Ok(answers)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_searches_share_jobs_and_large_ones_are_alone() {
        let jobs = |rows: &[u64]| into_jobs(rows.iter().map(|rows| (*rows, *rows)));
        let none: Vec<Vec<u64>> = Vec::new();
        assert_eq!(jobs(&[]), none);
        assert_eq!(jobs(&[2_500; 5]), [vec![2_500; 4], vec![2_500]]);
        assert_eq!(jobs(&[6_000, 6_000, 4_000]), [vec![6_000], vec![6_000, 4_000]]);
        assert_eq!(jobs(&[10, u64::MAX, 10]), [vec![10], vec![u64::MAX], vec![10]]);
        assert_eq!(jobs(&[0, 10_000, 0, 1]), [vec![0, 10_000, 0], vec![1]]);
    }
}
