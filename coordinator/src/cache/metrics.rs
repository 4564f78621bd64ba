//! What the caches count: lookups and hit rate by tier and kind, and how Redis does.

use std::time::Duration;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector,
};

/// Where an entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// This process.
    Memory,
    /// Redis, shared by coordinators.
    Redis,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A search's ranked chunks.
    Retrieval,
    /// A query's vector.
    Embedding,
    /// A language model's text.
    Answer,
}

impl Tier {
    const ALL: [Self; 2] = [Self::Memory, Self::Redis];

    /// Label of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redis => "redis",
        }
    }
}

impl Kind {
    const ALL: [Self; 3] = [Self::Retrieval, Self::Embedding, Self::Answer];

    /// Label of metrics, and part of names in Redis.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retrieval => "retrieval",
            Self::Embedding => "embedding",
            Self::Answer => "answer",
        }
    }
}

#[derive(Clone)]
struct Counts {
    hits: IntCounter,
    misses: IntCounter,
    rate: Gauge,
}

/// The caches' series. Clones share them.
#[derive(Clone)]
pub struct CacheMetrics {
    /// By tier, then kind, in the order of `ALL`.
    counts: Vec<Counts>,
    lookups: IntCounterVec,
    rates: GaugeVec,
    redis_up: IntGauge,
    redis_read_seconds: Histogram,
    redis_failures: IntCounter,
    redis_skipped: IntCounter,
    redis_foreign: IntCounter,
    redis_writes: IntCounterVec,
    flights_waited: IntCounterVec,
}

impl Default for CacheMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl CacheMetrics {
    /// All at zero, registered nowhere.
    #[expect(clippy::missing_panics_doc, reason = "the names are literals that prometheus accepts; a test makes them")]
    pub fn new() -> Self {
        let counter = |name: &str, help: &str| IntCounter::new(name, help).expect("a valid literal name");
        let counters = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels).expect("a valid literal name")
        };
        let lookups = counters(
            "cache_lookups_total",
            "lookups in a cache, by tier, kind and result",
            &["tier", "kind", "result"],
        );
        let rate = Opts::new("cache_hit_rate", "share of lookups answered by this tier since start, 0 to 1");
        let rates = GaugeVec::new(rate, &["tier", "kind"]).expect("a valid literal name");
        // Present from the first scrape on, so that a rate has a beginning.
        let pairs = Tier::ALL.iter().flat_map(|tier| Kind::ALL.iter().map(move |kind| (tier.as_str(), kind.as_str())));
        let counts = pairs
            .map(|(tier, kind)| Counts {
                hits: lookups.with_label_values(&[tier, kind, "hit"]),
                misses: lookups.with_label_values(&[tier, kind, "miss"]),
                rate: rates.with_label_values(&[tier, kind]),
            })
            .collect();
        let seconds =
            HistogramOpts::new("cache_redis_read_seconds", "time of one read from Redis, as a request waited")
                .buckets(vec![0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]);
        let redis_writes =
            counters("cache_redis_writes_total", "writes to Redis, by what became of them", &["outcome"]);
        for outcome in ["written", "failed", "dropped"] {
            redis_writes.with_label_values(&[outcome]);
        }
        let flights_waited = counters(
            "cache_flights_waited_total",
            "waits for another coordinator's equal search or answer, by whether it came in time",
            &["outcome"],
        );
        for outcome in ["served", "given_up"] {
            flights_waited.with_label_values(&[outcome]);
        }
        Self {
            counts,
            lookups,
            rates,
            redis_up: IntGauge::new("cache_redis_up", "1 while requests ask Redis, 0 while they go on without it")
                .expect("a valid literal name"),
            redis_read_seconds: Histogram::with_opts(seconds).expect("a valid literal name"),
            redis_failures: counter("cache_redis_failures_total", "reads from Redis that failed or took too long"),
            redis_skipped: counter("cache_redis_skipped_total", "reads not sent because Redis is thought to be down"),
            redis_foreign: counter("cache_redis_foreign_total", "values in Redis that were not ours, or damaged"),
            redis_writes,
            flights_waited,
        }
    }

    /// Adds all of them to `registry`. Errors: a name is taken.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        let all: [Box<dyn Collector>; 9] = [
            Box::new(self.lookups.clone()),
            Box::new(self.rates.clone()),
            Box::new(self.redis_up.clone()),
            Box::new(self.redis_read_seconds.clone()),
            Box::new(self.redis_failures.clone()),
            Box::new(self.redis_skipped.clone()),
            Box::new(self.redis_foreign.clone()),
            Box::new(self.redis_writes.clone()),
            Box::new(self.flights_waited.clone()),
        ];
        all.into_iter().try_for_each(|collector| registry.register(collector))
    }

    /// Counts `hits` and `misses` of one lookup and moves the rate.
    pub fn looked_up(&self, tier: Tier, kind: Kind, hits: u64, misses: u64) {
        let counts = &self.counts[tier as usize * Kind::ALL.len() + kind as usize];
        counts.hits.inc_by(hits);
        counts.misses.inc_by(misses);
        let (hits, misses) = (counts.hits.get(), counts.misses.get());
        if hits + misses > 0 {
            counts.rate.set(hits as f64 / (hits + misses) as f64);
        }
    }

    pub(super) fn redis_is_up(&self, is_up: bool) {
        self.redis_up.set(i64::from(is_up));
    }

    pub(super) fn redis_read(&self, took: Duration) {
        self.redis_read_seconds.observe(took.as_secs_f64());
    }

    pub(super) fn redis_failed(&self) {
        self.redis_failures.inc();
    }

    pub(super) fn redis_skipped(&self) {
        self.redis_skipped.inc();
    }

    pub(super) fn redis_foreign(&self) {
        self.redis_foreign.inc();
    }

    pub(super) fn redis_wrote(&self, outcome: &'static str) {
        self.redis_writes.with_label_values(&[outcome]).inc();
    }

    pub(super) fn waited(&self, is_served: bool) {
        self.flights_waited.with_label_values(&[if is_served { "served" } else { "given_up" }]).inc();
    }

    /// Hits and misses so far.
    pub fn counted(&self, tier: Tier, kind: Kind) -> (u64, u64) {
        let counts = &self.counts[tier as usize * Kind::ALL.len() + kind as usize];
        (counts.hits.get(), counts.misses.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tier_and_kind_has_its_own_rate() {
        let (metrics, registry) = (CacheMetrics::new(), Registry::new());
        metrics.register(&registry).expect("registers");
        metrics.looked_up(Tier::Redis, Kind::Answer, 1, 3);
        metrics.looked_up(Tier::Memory, Kind::Retrieval, 2, 0);
        for tier in Tier::ALL {
            for kind in Kind::ALL {
                let expected = match (tier, kind) {
                    (Tier::Redis, Kind::Answer) => (1, 3, 0.25),
                    (Tier::Memory, Kind::Retrieval) => (2, 0, 1.0),
                    _ => (0, 0, 0.0),
                };
                let rate = metrics.rates.with_label_values(&[tier.as_str(), kind.as_str()]).get();
                let (hits, misses) = metrics.counted(tier, kind);
                assert_eq!((hits, misses, rate), expected, "{tier:?} {kind:?}");
            }
        }
    }
}
