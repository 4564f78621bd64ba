//! What embedding counts. Made and registered once per process; every part holds a clone.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

/// Counters of the model's pool. The cache before it is counted with the other caches.
#[derive(Clone, Debug)]
pub struct EmbedMetrics {
    /// Texts the model embedded.
    pub texts: IntCounter,
    /// Tokens the model read.
    pub tokens: IntCounter,
    /// Texts of one forward pass.
    pub batch_texts: Histogram,
    /// Seconds of one forward pass, tokenizing included.
    pub forward_seconds: Histogram,
    /// Texts waiting now.
    pub queued: IntGauge,
    /// Texts refused because the queue was full.
    pub overloaded: IntCounter,
    /// Texts dropped unembedded: nobody waited for them any more.
    pub abandoned: IntCounter,
}

impl Default for EmbedMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl EmbedMetrics {
    /// All at zero, registered nowhere.
    #[expect(clippy::missing_panics_doc, reason = "the names are literals that prometheus accepts; a test makes them")]
    pub fn new() -> Self {
        let counter = |name: &str, help: &str| IntCounter::new(name, help).expect("a valid literal name");
        let histogram = |name: &str, help: &str, buckets: Vec<f64>| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)).expect("a valid literal name")
        };
        Self {
            texts: counter("embed_texts_total", "Texts embedded by the model"),
            tokens: counter("embed_tokens_total", "Tokens read by the model"),
            batch_texts: histogram(
                "embed_batch_texts",
                "Texts of one forward pass",
                vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0],
            ),
            forward_seconds: histogram(
                "embed_forward_seconds",
                "Seconds of one forward pass",
                vec![0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0],
            ),
            queued: IntGauge::new("embed_queued_texts", "Texts waiting for the model").expect("a valid literal name"),
            overloaded: counter("embed_overloaded_total", "Texts refused because the queue was full"),
            abandoned: counter("embed_abandoned_total", "Texts dropped because nobody waited for them"),
        }
    }

    /// Adds all of them to `registry`. Errors: a name is taken.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.texts.clone()))?;
        registry.register(Box::new(self.tokens.clone()))?;
        registry.register(Box::new(self.batch_texts.clone()))?;
        registry.register(Box::new(self.forward_seconds.clone()))?;
        registry.register(Box::new(self.queued.clone()))?;
        registry.register(Box::new(self.overloaded.clone()))?;
        registry.register(Box::new(self.abandoned.clone()))
    }
}
