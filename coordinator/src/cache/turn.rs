//! Whose turn it is to compute what no cache has: one at a time in this process ([`single_flight`](super::single_flight)) and, by a
//! lease in Redis, among coordinators.
//!
//! Waiting never hands over a result: who waited looks again, and takes what its own lookup finds.

use std::time::{Duration, Instant};

use super::key::CacheKey;
use super::metrics::{CacheMetrics, Kind, Tier};
use super::redis::{Lease, Leased, SharedCache, Term};
use super::single_flight::Flight;

/// What a lookup led to.
pub enum Looked<T> {
    /// What was kept.
    Found(T),
    /// To be computed; equal requests wait for the caller until it drops the turn.
    Missing(Turn),
}

/// The caller's turn to compute, in this process and among coordinators. Empty where it does not matter who computes.
#[derive(Default)]
pub struct Turn {
    _flight: Option<Flight>,
    _lease: Option<Box<Lease>>,
}

/// How what another coordinator computes is waited for.
pub(super) struct Waiting {
    /// Of the lease.
    pub(super) term: Term,
    /// Pauses between two looks: the first, doubled up to the longest.
    pub(super) pauses: (Duration, Duration),
    /// Then the caller computes by itself.
    pub(super) until: Instant,
}

/// The turn of whoever has the flight, or what another coordinator brought meanwhile, as `look` finds it in the shared tier.
///
/// Without Redis, or where it does not say who has the lease, the flight is the turn; the same where the lease's owner takes too long.
pub(super) async fn begin<T, L: Future<Output = Option<T>>>(
    flight: Flight,
    shared: Option<&SharedCache>,
    (kind, key): (Kind, &CacheKey),
    waiting: Waiting,
    metrics: &CacheMetrics,
    look: impl Fn() -> L,
) -> Looked<T> {
    let mine = |lease: Option<Lease>| Looked::Missing(Turn { _flight: Some(flight), _lease: lease.map(Box::new) });
    let Some(shared) = shared else { return mine(None) };
    let (mut pause, longest) = waiting.pauses;
    let mut has_waited = false;
    loop {
        let leased = shared.lease(key, waiting.term).await;
        // Looked at once more with the lease in hand: its last owner may have brought something and gone between two looks.
        if let Some(found) = look().await {
            metrics.looked_up(Tier::Redis, kind, 1, 0);
            if has_waited {
                metrics.waited(true);
            }
            return Looked::Found(found);
        }
        let lease = match leased {
            Leased::Mine(lease) => Some(lease),
            Leased::Unknown => None,
            Leased::Theirs if Instant::now() + pause >= waiting.until => None,
            Leased::Theirs => {
                has_waited = true;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
                continue;
            }
        };
        if has_waited {
            metrics.waited(false);
        }
        return mine(lease);
    }
}
