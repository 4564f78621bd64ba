//! What was seen, held against what is promised.

use std::time::Duration;

use super::{COLLECTION, Evidence, Run};
use crate::checker::{self, Finding};
use crate::history::{Action, Level, Operation, Outcome};
use crate::nemesis;
use crate::observer;
use crate::verdict::{Counts, Verdict};
use crate::workload::documents::MAX_STALENESS;

/// A busy machine may deliver what a copy goes by this late.
const DELIVERY_MAX: Duration = Duration::from_secs(2);

/// How old a bounded read may be while the network is hurt: a copy counts from when its primary's word reached it, and a silent link keeps
/// words back until the fault is healed.
fn staleness_bound_us() -> u64 {
    (MAX_STALENESS + nemesis::LASTS_MAX + DELIVERY_MAX).as_micros() as u64
}

pub(super) fn judge(run: &Run, evidence: &Evidence, invariants: Finding, not_run: Vec<String>) -> Verdict {
    let history = evidence.history.snapshot();
    let (looks, seen) = (&evidence.looks, &evidence.seen);
    let mut findings = vec![
        checker::lost::check(&history),
        checker::phantom::check(&history),
        checker::resurrected::check(&history),
        checker::linearizable::check(&history),
        checker::sessions::check(&history),
        checker::fresh::check(&history, Level::Bounded, staleness_bound_us()),
        checker::primaries::check(looks, &seen.claims),
        checker::metadata::check(looks),
        checker::collections::check(&evidence.lives, looks),
        checker::copies_agree::finding(&evidence.converged),
        invariants,
        Finding {
            promise: "nothing but the plan's faults needs mending",
            checked: evidence.faults.values().sum(),
            breaches: evidence.troubles.clone(),
        },
    ];
    findings.push(match &evidence.searched {
        Ok(searched) => checker::found::check(&history, searched),
        Err(reason) => checker::found::not_searched(reason),
    });
    let counts = count(&history, evidence);
    let faults = evidence.faults.iter().map(|(kind, count)| (*kind, *count)).collect();
    Verdict { seed: run.seed, duration: run.duration, faults, not_run, counts, findings }
}

fn count(history: &[Operation], evidence: &Evidence) -> Counts {
    let count =
        |is_meant: &dyn Fn(&Operation) -> bool| history.iter().filter(|operation| is_meant(operation)).count() as u64;
    let is_write = |operation: &Operation| matches!(operation.action, Action::Write { .. });
    let is_read = |operation: &Operation, wanted: Level| {
        matches!(operation.action, Action::Read { level, .. } if level == wanted) && operation.outcome == Outcome::Ok
    };
    Counts {
        failovers: observer::failovers(&evidence.looks, COLLECTION),
        snapshots: evidence.seen.snapshots,
        writes_acknowledged: count(&|operation| is_write(operation) && operation.outcome == Outcome::Ok),
        writes_unknown: count(&|operation| is_write(operation) && operation.outcome == Outcome::Unknown),
        strong_reads: count(&|operation| is_read(operation, Level::Strong)),
        session_reads: count(&|operation| is_read(operation, Level::Session)),
        bounded_reads: count(&|operation| is_read(operation, Level::Bounded)),
        searches: count(&|operation| is_read(operation, Level::Eventual)),
        reads_failed: count(&|operation| !is_write(operation) && operation.outcome != Outcome::Ok),
    }
}
