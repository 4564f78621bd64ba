//! What a chaos run ends with: one page, with counts that must be high enough for the findings to mean anything.

use std::fmt;
use std::time::Duration;

use crate::checker::Finding;

/// The minimums below are for this long, and proportional.
const MINIMUMS_FOR: Duration = Duration::from_secs(300);
const FAULTS_MIN: u64 = 20;
const FAILOVERS_MIN: u64 = 5;
const WRITES_MIN: u64 = 5_000;
const STRONG_READS_MIN: u64 = 1_000;
const SESSION_READS_MIN: u64 = 1_000;

/// How much happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Faults injected and healed.
    pub faults: u64,
    /// Primaries that moved to another copy.
    pub failovers: u64,
    /// Documents whose put or delete was acknowledged.
    pub writes_acknowledged: u64,
    /// Those without an acknowledgement.
    pub writes_unknown: u64,
    /// Answered strong reads.
    pub strong_reads: u64,
    /// Answered session reads.
    pub session_reads: u64,
    /// Answered searches.
    pub searches: u64,
    /// Reads of any kind without an answer.
    pub reads_failed: u64,
}

impl Counts {
    fn with_minimums(&self) -> [(&'static str, u64, u64); 5] {
        [
            ("faults", self.faults, FAULTS_MIN),
            ("failovers", self.failovers, FAILOVERS_MIN),
            ("acknowledged writes", self.writes_acknowledged, WRITES_MIN),
            ("strong reads", self.strong_reads, STRONG_READS_MIN),
            ("session reads", self.session_reads, SESSION_READS_MIN),
        ]
    }
}

/// The verdict of a run.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Repeats the plan.
    pub seed: u64,
    /// How long faults were injected.
    pub duration: Duration,
    /// How much happened.
    pub counts: Counts,
    /// One per promise.
    pub findings: Vec<Finding>,
}

impl Verdict {
    /// Whether every promise was put to the test and kept, and enough happened.
    pub fn is_good(&self) -> bool {
        self.findings.iter().all(Finding::is_kept) && self.too_few().next().is_none()
    }

    fn too_few(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let share = self.duration.as_secs_f64() / MINIMUMS_FOR.as_secs_f64();
        let scaled = move |(what, count, least): (_, _, u64)| (what, count, ((least as f64 * share) as u64).max(1));
        self.counts.with_minimums().into_iter().map(scaled).filter(|(_, count, least)| count < least)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { faults, failovers, writes_acknowledged, writes_unknown, .. } = self.counts;
        let Counts { strong_reads, session_reads, searches, reads_failed, .. } = self.counts;
        writeln!(f, "chaos, SEED={}, {} s", self.seed, self.duration.as_secs())?;
        writeln!(f, "  {faults} faults, {failovers} failovers")?;
        writeln!(f, "  writes: {writes_acknowledged} acknowledged, {writes_unknown} unknown")?;
        writeln!(
            f,
            "  reads: {strong_reads} strong, {session_reads} session, {searches} eventual answered, {reads_failed} not"
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
            faults: 20,
            failovers: 5,
            writes_acknowledged: 5_000,
            strong_reads: 1_000,
            session_reads: 1_000,
            ..Counts::default()
        };
        let findings = vec![Finding { promise: "p", checked: 1, breaches: Vec::new() }];
        Verdict { seed: 1, duration: MINIMUMS_FOR, counts, findings }
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
}
