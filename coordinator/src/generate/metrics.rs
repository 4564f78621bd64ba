//! What the pool of language models counts. Labels are the configured backends' names, so they are bounded.

use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Time to first token has the buckets of OpenTelemetry's `gen_ai.server.time_to_first_token`, from 10 ms up.
const FIRST_TOKEN_BUCKETS: [f64; 13] = [0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0];

/// Counters of the pool.
#[derive(Clone, Debug)]
pub struct PoolMetrics {
    /// Requests by backend and outcome: `ok`, `busy`, `failed`, `refused`, `broken`, `cancelled`, `deadline`.
    pub requests: IntCounterVec,
    /// Requests at each backend now.
    pub in_flight: IntGaugeVec,
    /// 1 while a backend is ejected.
    pub ejected: IntGaugeVec,
    /// Requests waiting for a free backend.
    pub waiting: IntGauge,
    /// Seconds from a permit to the first token, by backend.
    pub first_token_seconds: HistogramVec,
    /// Seconds between tokens, by backend.
    pub token_gap_seconds: HistogramVec,
    /// Second copies sent because a first token was late.
    pub hedges: IntCounter,
    /// Tokens as the backends count them, by backend and direction (`prompt`, `completion`).
    pub tokens: IntCounterVec,
}

impl Default for PoolMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl PoolMetrics {
    /// All at zero, registered nowhere.
    #[expect(clippy::missing_panics_doc, reason = "the names are literals that prometheus accepts; a test makes them")]
    pub fn new() -> Self {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels).expect("a valid literal name")
        };
        let gauges = |name: &str, help: &str| {
            IntGaugeVec::new(Opts::new(name, help), &["backend"]).expect("a valid literal name")
        };
        let histograms = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(FIRST_TOKEN_BUCKETS.to_vec());
            HistogramVec::new(options, &["backend"]).expect("a valid literal name")
        };
        Self {
            requests: counters("llm_requests_total", "Requests by backend and outcome", &["backend", "outcome"]),
            in_flight: gauges("llm_in_flight", "Requests at the backend now"),
            ejected: gauges("llm_ejected", "1 while the backend is left out after failures"),
            waiting: IntGauge::new("llm_waiting", "Requests waiting for a free backend").expect("a valid literal name"),
            first_token_seconds: histograms("llm_time_to_first_token_seconds", "Seconds to the first token"),
            token_gap_seconds: histograms("llm_token_gap_seconds", "Seconds between tokens"),
            hedges: IntCounter::new("llm_hedges_total", "Second copies sent because a first token was late")
                .expect("a valid literal name"),
            tokens: counters("llm_tokens_total", "Tokens by backend and direction", &["backend", "direction"]),
        }
    }

    /// Adds all of them to `registry`. Errors: a name is taken.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.requests.clone()))?;
        registry.register(Box::new(self.in_flight.clone()))?;
        registry.register(Box::new(self.ejected.clone()))?;
        registry.register(Box::new(self.waiting.clone()))?;
        registry.register(Box::new(self.first_token_seconds.clone()))?;
        registry.register(Box::new(self.token_gap_seconds.clone()))?;
        registry.register(Box::new(self.hedges.clone()))?;
        registry.register(Box::new(self.tokens.clone()))
    }

    /// Takes the gauges of a backend that is gone out of the series.
    pub fn forget(&self, backend: &str) {
        // Not there: it was never asked.
        let _ = self.in_flight.remove_label_values(&[backend]);
        let _ = self.ejected.remove_label_values(&[backend]);
    }
}
