//! What an operator is promised when a node fails, and how a drill's measurements compare.

use std::fmt;

use serde::Serialize;

use super::Mode;
use super::measure::Measured;
use crate::checker::Finding;

/// Promised bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Promises {
    /// Longest time in which a shard acknowledges no write.
    pub write_gap_ms: u64,
    /// Least share of searches with a complete answer.
    pub coverage: f64,
    /// Most that a search takes longer than before.
    pub added_latency_ms: u64,
}

impl Promises {
    /// A killed process is found out by its refusing port, a silent one only by the node timeout; where it led the metadata group, a
    /// new leader is elected first. Nobody waits for a read replica.
    pub fn of(mode: Mode, led_metadata: bool, is_read_replica: bool) -> Self {
        let write_gap_ms = match (is_read_replica, mode, led_metadata) {
            (true, ..) => 1_000,
            (_, Mode::Kill, false) => 2_000,
            (_, Mode::Kill, true) => 4_000,
            (_, Mode::Stop | Mode::Partition | Mode::Mute, false) => 5_000,
            (_, Mode::Stop | Mode::Partition | Mode::Mute, true) => 7_000,
            // Heard, and so taken for alive, for two node timeouts.
            (_, Mode::Deaf, false) => 8_000,
            (_, Mode::Deaf, true) => 10_000,
            // Whoever leads may be one of those that do not hear each other.
            (_, Mode::Bridge, _) => 7_000,
        };
        let added_latency_ms = if mode == Mode::Kill { 300 } else { 1_500 };
        Self { write_gap_ms, coverage: 0.999, added_latency_ms }
    }

    /// Promise beside measurement.
    pub fn compare(
        &self,
        measured: &Measured,
        lost: &Finding,
        phantom: &Finding,
        equal: &anyhow::Result<()>,
    ) -> Vec<Comparison> {
        let at_most = |what, promised: u64, measured: u64| Comparison {
            what,
            promised: format!("at most {promised} ms"),
            measured: format!("{measured} ms"),
            is_kept: measured <= promised,
        };
        let none = |what, finding: &Finding| Comparison {
            what,
            promised: "0".into(),
            measured: format!("{} of {}", finding.breaches.len(), finding.checked),
            is_kept: finding.is_kept(),
        };
        vec![
            none("acknowledged writes lost", lost),
            none("documents nobody wrote", phantom),
            at_most("worst write gap of a shard", self.write_gap_ms, measured.write_gap_ms),
            Comparison {
                what: "searches with full coverage",
                promised: format!("at least {:.1} %", 100.0 * self.coverage),
                measured: format!("{:.2} % of {}", 100.0 * measured.coverage, measured.searches),
                is_kept: measured.searches > 0 && measured.coverage >= self.coverage,
            },
            at_most("worst added search latency", self.added_latency_ms, measured.added_latency_ms),
            Comparison {
                what: "copies equal by digest",
                promised: "all".into(),
                measured: equal.as_ref().map_or_else(|reason| format!("{reason:#}"), |()| "all".into()),
                is_kept: equal.is_ok(),
            },
        ]
    }
}

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// What is compared.
    pub what: &'static str,
    /// What was promised.
    pub promised: String,
    /// What was measured.
    pub measured: String,
    /// Whether the promise was kept.
    pub is_kept: bool,
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, promised, measured, is_kept } = self;
        write!(f, "{what:<28} {promised:<18} {measured:<20} {}", if *is_kept { "kept" } else { "BROKEN" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_promise_breaks_on_its_own() {
        let good = Measured {
            write_gap_ms: 2_000,
            searches: 1_000,
            coverage: 0.999,
            added_latency_ms: 300,
            ..Measured::default()
        };
        let finding = |breaches: Vec<String>| Finding { promise: "p", checked: 9, breaches };
        let promises = Promises::of(Mode::Kill, false, false);
        let broken = |measured: &Measured, lost: Finding, equal: anyhow::Result<()>| {
            let compared = promises.compare(measured, &lost, &finding(Vec::new()), &equal);
            compared
                .into_iter()
                .filter(|comparison| !comparison.is_kept)
                .map(|comparison| comparison.what)
                .collect::<Vec<_>>()
        };
        let none = || finding(Vec::new());
        assert!(broken(&good, none(), Ok(())).is_empty());
        assert_eq!(broken(&good, finding(vec!["b".into()]), Ok(())), ["acknowledged writes lost"]);
        assert_eq!(broken(&good, none(), Err(anyhow::anyhow!("differ"))), ["copies equal by digest"]);
        let slow = Measured { write_gap_ms: 2_001, ..good.clone() };
        assert_eq!(broken(&slow, none(), Ok(())), ["worst write gap of a shard"]);
        let silent = Measured { coverage: 0.998, added_latency_ms: 301, ..good };
        assert_eq!(broken(&silent, none(), Ok(())), ["searches with full coverage", "worst added search latency"]);
    }
}
