//! What a chaos run ends with: one page, with counts that must be high enough for the findings to mean anything.

use std::fmt;
use std::time::Duration;

use crate::checker::Finding;
use crate::nemesis::Kind;

/// The minimums below are for this long, and proportional; a run of this length has every kind of fault.
const MINIMUMS_FOR: Duration = Duration::from_secs(300);
const FAULTS_MIN: u64 = 20;
const FAILOVERS_MIN: u64 = 5;
const WRITES_MIN: u64 = 5_000;
const STRONG_READS_MIN: u64 = 500;
const SESSION_READS_MIN: u64 = 500;
const BOUNDED_READS_MIN: u64 = 500;
const SNAPSHOTS_MIN: u64 = 5;
/// A shorter run may do without snapshots.
const SNAPSHOTS_FROM: Duration = Duration::from_secs(60);

/// How much happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Primaries that moved to another copy.
    pub failovers: u64,
    /// Snapshots that copies were brought up to date by.
    pub snapshots: u64,
    /// Documents whose put or delete was acknowledged.
    pub writes_acknowledged: u64,
    /// Those without an acknowledgement.
    pub writes_unknown: u64,
    /// Answered strong reads.
    pub strong_reads: u64,
    /// Answered session reads.
    pub session_reads: u64,
    /// Answered bounded reads.
    pub bounded_reads: u64,
    /// Answered searches.
    pub searches: u64,
    /// Reads of any kind without an answer.
    pub reads_failed: u64,
}

/// The verdict of a run.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Repeats the plan.
    pub seed: u64,
    /// How long faults were injected.
    pub duration: Duration,
    /// Faults injected and healed, of each kind that the plan has.
    pub faults: Vec<(Kind, u64)>,
    /// Kinds that this machine does not allow, and why.
    pub not_run: Vec<String>,
    /// How much happened.
    pub counts: Counts,
    /// One per promise.
    pub findings: Vec<Finding>,
}

impl Verdict {
    /// Whether every promise was put to the test and kept, and enough happened.
    pub fn is_good(&self) -> bool {
        self.findings.iter().all(Finding::is_kept) && self.too_few().is_empty()
    }

    fn fault_count(&self) -> u64 {
        self.faults.iter().map(|(_, count)| count).sum()
    }

    /// What there was too little of: its name, how much there was, and how much there must be at least.
    fn too_few(&self) -> Vec<(String, u64, u64)> {
        let share = self.duration.as_secs_f64() / MINIMUMS_FOR.as_secs_f64();
        let with_minimums = [
            ("faults", self.fault_count(), FAULTS_MIN),
            ("failovers", self.counts.failovers, FAILOVERS_MIN),
            ("acknowledged writes", self.counts.writes_acknowledged, WRITES_MIN),
            ("strong reads", self.counts.strong_reads, STRONG_READS_MIN),
            ("session reads", self.counts.session_reads, SESSION_READS_MIN),
            ("bounded reads", self.counts.bounded_reads, BOUNDED_READS_MIN),
        ];
        let snapshots =
            (self.duration >= SNAPSHOTS_FROM).then_some(("snapshots", self.counts.snapshots, SNAPSHOTS_MIN));
        let counted = with_minimums
            .into_iter()
            .chain(snapshots)
            .map(|(what, count, least)| (what.to_owned(), count, ((least as f64 * share) as u64).max(1)));
        let is_long = self.duration >= MINIMUMS_FOR;
        let kinds = self.faults.iter().filter(|_| is_long).map(|(kind, count)| (kind.to_string(), *count, 1));
        counted.chain(kinds).filter(|(_, count, least)| count < least).collect()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { failovers, snapshots, writes_acknowledged, writes_unknown, .. } = self.counts;
        let Counts { strong_reads, session_reads, bounded_reads, searches, reads_failed, .. } = self.counts;
        let kinds: Vec<String> = self.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        writeln!(f, "chaos, SEED={}, {} s", self.seed, self.duration.as_secs())?;
        writeln!(f, "  {} faults: {}", self.fault_count(), kinds.join(", "))?;
        for reason in &self.not_run {
            writeln!(f, "  NOT RUN: {reason}")?;
        }
        writeln!(f, "  {failovers} failovers, {snapshots} snapshots fetched")?;
        writeln!(f, "  writes: {writes_acknowledged} acknowledged, {writes_unknown} unknown")?;
        writeln!(
            f,
            "  reads answered: {strong_reads} strong, {session_reads} session, {bounded_reads} bounded, {searches} eventual; \
             not answered: {reads_failed}"
        )?;
        for finding in &self.findings {
            writeln!(f, "  {finding}")?;
        }
        for (what, count, least) in self.too_few() {
            writeln!(f, "  TOO FEW {what}: {count}, at least {least}")?;
        }
        write!(f, "  {}", if self.is_good() { "PASSED" } else { "FAILED" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict() -> Verdict {
        let counts = Counts {
            failovers: 5,
            snapshots: 5,
            writes_acknowledged: 5_000,
            strong_reads: 1_000,
            session_reads: 1_000,
            bounded_reads: 1_000,
            ..Counts::default()
        };
        let findings = vec![Finding { promise: "p", checked: 1, breaches: Vec::new() }];
        let faults = vec![(Kind::Crash, 12), (Kind::Mute, 8)];
        Verdict { seed: 1, duration: MINIMUMS_FOR, faults, not_run: Vec::new(), counts, findings }
    }

    #[test]
    fn a_breach_an_untested_promise_or_too_little_fails() {
        assert!(verdict().is_good());
        let mut broken = verdict();
        broken.findings[0].breaches.push("b".into());
        let mut untested = verdict();
        untested.findings[0].checked = 0;
        let mut idle = verdict();
        idle.counts.failovers = 4;
        for bad in [broken, untested, idle.clone()] {
            assert!(!bad.is_good());
            assert!(bad.to_string().ends_with("FAILED"));
        }
        assert!(idle.to_string().contains("TOO FEW failovers: 4, at least 5"));
        idle.duration = Duration::from_secs(60);
        assert!(idle.is_good(), "the minimum is proportional");
    }

    #[test]
    fn from_a_minute_on_somebody_must_need_a_snapshot() {
        let mut short_of_them = verdict();
        short_of_them.counts.snapshots = 0;
        short_of_them.duration = Duration::from_secs(59);
        assert!(short_of_them.is_good());
        short_of_them.duration = Duration::from_secs(60);
        assert!(short_of_them.to_string().contains("TOO FEW snapshots: 0, at least 1"), "{short_of_them}");
    }

    #[test]
    fn a_long_run_without_a_kind_of_fault_fails() {
        let mut one_sided = verdict();
        one_sided.faults = vec![(Kind::Crash, 20), (Kind::Mute, 0)];
        let page = one_sided.to_string();
        assert!(page.contains("20 faults: crash 20, mute 0") && page.contains("TOO FEW mute: 0, at least 1"), "{page}");
        assert!(!one_sided.is_good());
        one_sided.duration = Duration::from_secs(60);
        assert!(one_sided.is_good(), "one minute is less than a round");
    }

    #[test]
    fn what_this_machine_does_not_allow_is_told() {
        let mut barred = verdict();
        barred.not_run.push("full disk: must be superuser".into());
        assert!(barred.to_string().contains("NOT RUN: full disk: must be superuser"));
        assert!(barred.is_good(), "nothing can be done about it here");
    }
}
