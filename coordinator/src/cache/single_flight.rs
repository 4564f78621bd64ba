//! Equal work at the same time (searches, embeddings, answers): one computes, the others wait for it and then look in the cache again.
//!
//! Waiting never hands over the result itself. The one that waited may have begun after a write that the other did not see; only the
//! lookup, which checks positions, decides.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::key::CacheKey;

type Flights = Arc<Mutex<HashMap<CacheKey, watch::Receiver<()>>>>;

/// Work under way, by key. Bounded by the requests in flight.
#[derive(Default)]
pub struct SingleFlight {
    flights: Flights,
}

/// The right to compute; others wait until it is dropped.
pub struct Flight {
    flights: Flights,
    key: CacheKey,
    _done: watch::Sender<()>,
}

/// Until when another's work is waited for: half of what is left, so that the other half is there for one's own.
pub fn half_way(now: Instant, deadline: Instant) -> Instant {
    now + deadline.saturating_duration_since(now) / 2
}

impl SingleFlight {
    /// The right to compute, or `None` after another flight of the same key has ended, or `until` has passed.
    pub async fn begin(&self, key: &CacheKey, until: Instant) -> Option<Flight> {
        let mut under_way = {
            let mut flights = self.flights.lock();
            match flights.get(key) {
                Some(under_way) => under_way.clone(),
                None => {
                    let (done, under_way) = watch::channel(());
                    flights.insert(*key, under_way);
                    return Some(Flight { flights: Arc::clone(&self.flights), key: *key, _done: done });
                }
            }
        };
        // Ends with an error when the sender is dropped: that is the signal.
        let _ = tokio::time::timeout_at(until.into(), under_way.changed()).await;
        None
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn half_of_the_time_is_left_for_ones_own() {
        let now = Instant::now();
        assert_eq!(half_way(now, now + Duration::from_secs(4)), now + Duration::from_secs(2));
        assert_eq!(half_way(now, now - Duration::from_secs(1)), now);
    }

    #[tokio::test]
    async fn the_second_waits_until_the_first_is_gone_even_if_it_was_cancelled() {
        let flights = Arc::new(SingleFlight::default());
        let key = CacheKey::of_embedding("m", "q");
        let deadline = Instant::now() + Duration::from_secs(60);
        let first = flights.begin(&key, deadline).await.expect("first");
        let waiting = {
            let flights = Arc::clone(&flights);
            tokio::spawn(async move { flights.begin(&key, deadline).await.is_none() })
        };
        tokio::task::yield_now().await;
        drop(first);
        assert!(waiting.await.expect("joins"));
        assert!(flights.begin(&key, deadline).await.is_some());
    }
}
