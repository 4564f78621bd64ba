//! The searches of one call on the search pool: which copies share a job, which jobs a reply, and what a job gives.

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

/// Rows times queries that one job takes. Searching so few takes less than waking a second thread.
const JOB_ROWS_MAX: u64 = 10_000;
/// Rows times queries whose answers leave together. They are there within a millisecond or two, while each reply wakes both sides.
const REPLY_ROWS_MAX: u64 = 200_000;

/// A search of one copy, by the rows times queries that it may look at.
pub(super) type Weighed<T> = (u64, T);

/// Which searches are answered together.
pub(super) fn into_replies<T>(searches: impl IntoIterator<Item = Weighed<T>>) -> Vec<Vec<Weighed<T>>> {
    into_portions(searches, REPLY_ROWS_MAX)
}

/// Which searches one thread does.
pub(super) fn into_jobs<T>(searches: impl IntoIterator<Item = Weighed<T>>) -> Vec<Vec<Weighed<T>>> {
    into_portions(searches, JOB_ROWS_MAX)
}

/// Neighbours go together up to so many rows; what is larger is alone.
fn into_portions<T>(searches: impl IntoIterator<Item = Weighed<T>>, rows_max: u64) -> Vec<Vec<Weighed<T>>> {
    let mut portions: Vec<Vec<Weighed<T>>> = Vec::new();
    let mut room = 0;
    for (rows, search) in searches {
        match portions.last_mut() {
            Some(portion) if rows <= room => {
                portion.push((rows, search));
                room -= rows;
            }
            _ => {
                portions.push(vec![(rows, search)]);
                room = rows_max.saturating_sub(rows);
            }
        }
    }
    portions
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
    /// Waiting for the thread, and for the copies that it searched before.
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
    /// Runs the queries on a copy. Blocks; belongs on the search pool.
    pub(super) fn run(&self, copy: &Copy) -> Searched {
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
    fn small_searches_go_together_and_large_ones_are_alone() {
        let jobs = |rows: &[u64]| -> Vec<Vec<u64>> {
            let portions = into_portions(rows.iter().map(|rows| (*rows, ())), 10_000);
            portions.into_iter().map(|portion| portion.into_iter().map(|(rows, ())| rows).collect()).collect()
        };
        let none: Vec<Vec<u64>> = Vec::new();
        assert_eq!(jobs(&[]), none);
        assert_eq!(jobs(&[2_500; 5]), [vec![2_500; 4], vec![2_500]]);
        assert_eq!(jobs(&[6_000, 6_000, 4_000]), [vec![6_000], vec![6_000, 4_000]]);
        assert_eq!(jobs(&[10, u64::MAX, 10]), [vec![10], vec![u64::MAX], vec![10]]);
        assert_eq!(jobs(&[0, 10_000, 0, 1]), [vec![0, 10_000, 0], vec![1]]);
    }
}
