//! One tenant's use of this coordinator, against its limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;

use super::allowance::{Allowance, Rate};
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
    pub(super) fn take_request(&self, rate: Rate) -> Result<(), Duration> {
        let now = Instant::now();
        with_rate(&mut self.requests.lock(), rate, now).take_one(now)
    }

    pub(super) fn check_tokens(&self, rate: Rate) -> Result<(), Duration> {
        let now = Instant::now();
        with_rate(&mut self.tokens.lock(), rate, now).check_one(now)
    }

    pub(super) fn charge_tokens(&self, rate: Rate, tokens: u64) {
        let now = Instant::now();
        with_rate(&mut self.tokens.lock(), rate, now).charge(tokens as f64, now);
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
fn with_rate(slot: &mut Option<Allowance>, rate: Rate, now: Instant) -> &mut Allowance {
    let allowance = slot.get_or_insert_with(|| Allowance::new(rate, now));
    allowance.set(rate, now);
    allowance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_met() {
        let meter = Meter::default();
        let per = |bound, seconds| Rate { bound, period: Duration::from_secs(seconds) };
        assert!(meter.take_request(per(1, 1)).is_ok());
        let wait = meter.take_request(per(1, 1)).expect_err("one a second");
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
        assert!(meter.check_tokens(per(60, 60)).is_ok());
        meter.charge_tokens(per(60, 60), 180);
        let wait = meter.check_tokens(per(60, 60)).expect_err("is in debt");
        assert!((Duration::from_secs(110)..=Duration::from_secs(121)).contains(&wait), "{wait:?}");
        let limits = TenantLimits { streams_max: Some(1), ..TenantLimits::default() };
        let place = meter.open_stream(&limits).expect("one stream");
        assert!(meter.open_stream(&limits).is_err());
        drop(place);
        assert!(meter.open_stream(&limits).is_ok());
        // A tenant without limits is only counted.
        let unlimited = TenantLimits::default();
        assert!((0..1000).all(|_| meter.open_stream(&unlimited).is_ok()));
    }
}
