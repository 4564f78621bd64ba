//! What a drill measured, from its history alone.

use serde::Serialize;

use super::load::Routing;
use crate::history::{Action, Key, Level, Operation, Outcome};

/// Measurements of one drill. Times are milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Measured {
    /// Writes acknowledged.
    pub writes_acknowledged: u64,
    /// Writes that were not.
    pub writes_unknown: u64,
    /// For each shard the longest time without an acknowledgement, from the fault to the end of the load.
    pub write_gap_by_shard_ms: Vec<u64>,
    /// The longest of them.
    pub write_gap_ms: u64,
    /// The longest before the fault.
    pub write_gap_before_ms: u64,
    /// Searches from the fault on.
    pub searches: u64,
    /// Of those, without a complete answer.
    pub searches_failed: u64,
    /// Why, each reason once.
    pub search_errors: Vec<String>,
    /// Share with a complete answer.
    pub coverage: f64,
    /// Usual latency before the fault.
    pub search_before_median_ms: u64,
    /// Slowest before the fault.
    pub search_before_worst_ms: u64,
    /// Slowest answer from the fault on, less the usual latency before.
    pub added_latency_ms: u64,
}

/// Different reasons kept.
const REASONS_MAX: usize = 5;

/// The documents whose put was acknowledged.
pub fn acknowledged_keys(history: &[Operation]) -> Vec<Key> {
    let key = |operation: &Operation| match operation.action {
        Action::Write { key, .. } if operation.outcome == Outcome::Ok => Some(key),
        _ => None,
    };
    history.iter().filter_map(key).collect()
}

/// Measures what lies between the fault and the end of the load, beside what came before. Nothing is measured before the first
/// answer.
pub fn measure(history: &[Operation], routing: &Routing, fault_us: u64, end_us: u64) -> Measured {
    let mut acknowledged: Vec<Vec<u64>> = vec![Vec::new(); routing.shards() as usize];
    let mut measured = Measured::default();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for operation in history {
        match operation.action {
            Action::Write { key, .. } if operation.outcome == Outcome::Ok => {
                measured.writes_acknowledged += 1;
                acknowledged[routing.shard_of(key) as usize].push(operation.answered_us);
            }
            Action::Write { .. } => measured.writes_unknown += 1,
            Action::Read { level: Level::Eventual, .. } if operation.called_us < fault_us => before.push(operation),
            Action::Read { level: Level::Eventual, .. } => after.push(operation),
            _ => {}
        }
    }
    let begin_us = history.iter().map(|operation| operation.answered_us).min().unwrap_or(0);
    let fault_us = fault_us.max(begin_us);
    for times in &mut acknowledged {
        times.sort_unstable();
        measured.write_gap_by_shard_ms.push(gap_us(times, fault_us, end_us) / 1000);
        measured.write_gap_before_ms = measured.write_gap_before_ms.max(gap_us(times, begin_us, fault_us) / 1000);
    }
    measured.write_gap_ms = measured.write_gap_by_shard_ms.iter().copied().max().unwrap_or(0);

    // A search answered after the fault may have suffered from it, whenever it was sent.
    let (disturbed, before): (Vec<_>, Vec<_>) = before.into_iter().partition(|search| search.answered_us > fault_us);
    after.extend(disturbed);
    measured.searches = after.len() as u64;
    for search in after.iter().filter(|search| search.outcome != Outcome::Ok) {
        measured.searches_failed += 1;
        let reason = search.error.clone().unwrap_or_default();
        if measured.search_errors.len() < REASONS_MAX && !measured.search_errors.contains(&reason) {
            measured.search_errors.push(reason);
        }
    }
    measured.coverage = 1.0 - measured.searches_failed as f64 / measured.searches.max(1) as f64;
    let mut usual = latencies_ms(&before);
    usual.sort_unstable();
    measured.search_before_median_ms = usual.get(usual.len() / 2).copied().unwrap_or(0);
    measured.search_before_worst_ms = usual.last().copied().unwrap_or(0);
    let worst = latencies_ms(&after).into_iter().max().unwrap_or(0);
    measured.added_latency_ms = worst.saturating_sub(measured.search_before_median_ms);
    measured
}

fn latencies_ms(searches: &[&Operation]) -> Vec<u64> {
    let answered = searches.iter().filter(|search| search.outcome == Outcome::Ok);
    answered.map(|search| (search.answered_us - search.called_us) / 1000).collect()
}

/// The longest time within the window in which nothing of `times` (sorted) lies; one that began before it counts from its begin.
fn gap_us(times: &[u64], from_us: u64, to_us: u64) -> u64 {
    let first = times.partition_point(|time| *time <= from_us);
    let mut last = if first > 0 { times[first - 1] } else { from_us };
    let mut longest = 0;
    for time in times[first..].iter().copied().filter(|time| *time < to_us).chain([to_us]) {
        longest = longest.max(time - last);
        last = time;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::by_hand::{put, read, unknown};
    use crate::observer::by_hand::{look, register};

    #[test]
    fn a_gap_is_the_longest_silence_in_the_window() {
        assert_eq!(gap_us(&[10, 20, 90, 100], 50, 110), 70, "it began before the window");
        assert_eq!(gap_us(&[10, 20, 30], 15, 100), 70, "it lasts to the end");
        assert_eq!(gap_us(&[], 15, 100), 85);
        assert_eq!(gap_us(&[20, 40, 60], 0, 61), 20);
        assert_eq!(gap_us(&[20, 40], 20, 20), 0, "an empty window");
    }

    #[test]
    fn a_history_is_measured_from_the_fault_on() {
        let cluster = serde_json::json!({ "shards": [{ "collection": "c", "shard": "1/0" }] });
        let routing = Routing::new(&look(1, 1, register(1, 1, 1, &[1])), &cluster, "c", 1).expect("one shard");
        let search = |called_us, answered_us| read(Level::Eventual, 7, None, called_us, answered_us);
        let mut failed = search(6_000, 9_000);
        failed.outcome = Outcome::Unknown;
        let history = [
            put(1, 1, 0, 1_000),
            put(2, 1, 900, 2_000),
            unknown(put(3, 1, 5_000, 9_000)),
            put(4, 1, 5_000, 12_000),
            search(0, 1_000),
            search(1_000, 4_000),
            search(4_900, 9_900),
            search(6_000, 13_000),
            failed,
        ];
        let measured = measure(&history, &routing, 5_000, 14_000);
        assert_eq!((measured.writes_acknowledged, measured.writes_unknown), (3, 1));
        assert_eq!((measured.write_gap_ms, measured.write_gap_before_ms), (10, 3));
        assert_eq!((measured.searches, measured.searches_failed), (3, 1));
        assert_eq!((measured.search_before_median_ms, measured.search_before_worst_ms), (3, 3));
        assert_eq!(measured.added_latency_ms, 4);
        assert_eq!(acknowledged_keys(&history), [1, 2, 4]);
    }
}
