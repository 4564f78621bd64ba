//! One tenant's use of this coordinator, against its limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;

use super::allowance::Allowance;
use crate::catalog::tenants::TenantLimits;

/// A stream that could not be opened may be tried again after this: streams end at any time.
const STREAM_RETRY: Duration = Duration::from_secs(1);

/// A tenant's limit is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tenant's limit of {bound} {what} is met")]
pub struct LimitMet {
    /// What is limited.
    pub what: &'static str,
    /// How much of it.
    pub bound: u32,
    /// When to come back.
    pub retry_after: Duration,
}

/// Counts of one tenant.
#[derive(Default)]
pub(super) struct Meter {
    requests: Mutex<Option<Allowance>>,
    tokens: Mutex<Option<Allowance>>,
    streams: Arc<AtomicU32>,
}

/// A stream's place among its tenant's; dropping it frees the place.
pub struct StreamPlace {
    streams: Arc<AtomicU32>,
}

impl StreamPlace {
    /// The stream with its place: free when the stream is dropped.
    pub fn hold<T: 'static>(self, stream: BoxStream<'static, T>) -> BoxStream<'static, T> {
        stream
            .inspect(move |_| {
                let _held = &self;
            })
            .boxed()
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Meter {
    pub(super) fn take_request(&self, limits: &TenantLimits) -> Result<(), LimitMet> {
        let Some(bound) = limits.requests_per_second else { return Ok(()) };
        let now = Instant::now();
        let taken = with_rate(&mut self.requests.lock(), f64::from(bound), bound, now).take_one(now);
        taken.map_err(|retry_after| LimitMet { what: "requests per second", bound, retry_after })
    }

    pub(super) fn check_tokens(&self, limits: &TenantLimits) -> Result<(), LimitMet> {
        let Some(bound) = limits.tokens_per_minute else { return Ok(()) };
        let now = Instant::now();
        let checked = with_rate(&mut self.tokens.lock(), f64::from(bound) / 60.0, bound, now).check_one(now);
        checked.map_err(|retry_after| LimitMet { what: "tokens per minute", bound, retry_after })
    }

    pub(super) fn charge_tokens(&self, limits: &TenantLimits, tokens: u64) {
        let Some(bound) = limits.tokens_per_minute else { return };
        let now = Instant::now();
        with_rate(&mut self.tokens.lock(), f64::from(bound) / 60.0, bound, now).charge(tokens as f64, now);
    }

    pub(super) fn open_stream(&self, limits: &TenantLimits) -> Result<StreamPlace, LimitMet> {
        let bound = limits.streams_max.unwrap_or(u32::MAX);
        let opened =
            self.streams.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < bound).then(|| open + 1));
        match opened {
            Ok(_) => Ok(StreamPlace { streams: Arc::clone(&self.streams) }),
            Err(_) => Err(LimitMet { what: "concurrent streams", bound, retry_after: STREAM_RETRY }),
        }
    }
}

/// The allowance with the rate as configured now; the first call makes a full one.
fn with_rate(slot: &mut Option<Allowance>, per_second: f64, level_max: u32, now: Instant) -> &mut Allowance {
    let allowance = slot.get_or_insert_with(|| Allowance::new(per_second, f64::from(level_max), now));
    allowance.set(per_second, f64::from(level_max), now);
    allowance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_met_and_named() {
        let meter = Meter::default();
        let limits = TenantLimits {
            requests_per_second: Some(1),
            tokens_per_minute: Some(60),
            streams_max: Some(1),
            stored_bytes_max: None,
        };
        assert!(meter.take_request(&limits).is_ok());
        let refused = meter.take_request(&limits).expect_err("one a second");
        assert!(refused.retry_after <= Duration::from_secs(1), "{refused:?}");
        assert!(meter.check_tokens(&limits).is_ok());
        meter.charge_tokens(&limits, 180);
        let refused = meter.check_tokens(&limits).expect_err("is in debt");
        assert!((Duration::from_secs(110)..=Duration::from_secs(121)).contains(&refused.retry_after), "{refused:?}");
        let place = meter.open_stream(&limits).expect("one stream");
        assert!(meter.open_stream(&limits).is_err());
        drop(place);
        assert!(meter.open_stream(&limits).is_ok());
        // A tenant without limits is only counted.
        let unlimited = TenantLimits::default();
        for _ in 0..1000 {
            assert!(meter.take_request(&unlimited).is_ok() && meter.open_stream(&unlimited).is_ok());
        }
    }
}
