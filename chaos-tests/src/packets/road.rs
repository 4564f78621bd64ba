//! What becomes of a packet on its way between two ends: decisions, without packets or devices.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Host;

/// What waits longer than this before a narrow road is lost, as by a router whose queue is full.
const QUEUED_MAX: Duration = Duration::from_secs(1);

/// How packets travel one way between two ends.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Road {
    /// At once.
    #[default]
    Free,
    /// Not at all.
    Cut,
    /// Late, and so many bytes in a second.
    Narrow {
        /// Of every packet.
        delay: Duration,
        /// Bandwidth.
        bytes_per_second: u64,
    },
    /// Some are lost, the others overtake each other.
    Rough {
        /// Share that is lost, 0..=1.
        loss: f64,
        /// The longest that one takes; each takes its own time.
        delay_max: Duration,
    },
}

/// When a packet arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Now,
    At(Instant),
    Lost,
}

/// All roads; those that are not here are free.
#[derive(Debug, Default)]
pub(super) struct Roads(BTreeMap<(Host, Host), (Road, Option<Instant>)>);

impl Roads {
    pub(super) fn set(&mut self, from: Host, to: Host, road: Road) {
        self.0.insert((from, to), (road, None));
    }

    pub(super) fn free_all(&mut self) {
        self.0.clear();
    }

    /// Decides about a packet of `bytes` that sets out at `now`. `draws` are two numbers by chance, 0..1.
    pub(super) fn decide(&mut self, from: Host, to: Host, bytes: usize, now: Instant, draws: [f64; 2]) -> Fate {
        let Some((road, free_at)) = self.0.get_mut(&(from, to)) else { return Fate::Now };
        match *road {
            Road::Free => Fate::Now,
            Road::Cut => Fate::Lost,
            Road::Rough { loss, delay_max } => match draws[0] < loss {
                true => Fate::Lost,
                false => Fate::At(now + delay_max.mul_f64(draws[1])),
            },
            Road::Narrow { delay, bytes_per_second } => {
                let begins = free_at.map_or(now, |free_at| free_at.max(now));
                if begins - now > QUEUED_MAX {
                    return Fate::Lost;
                }
                let through = begins + Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
                *free_at = Some(through);
                Fate::At(through + delay)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_road_has_one_way_and_is_free_unless_it_is_said_how_it_is() {
        let (mut roads, now) = (Roads::default(), Instant::now());
        roads.set(1, 2, Road::Cut);
        let mut fate = |from, to| roads.decide(from, to, 100, now, [0.0; 2]);
        assert_eq!([fate(1, 2), fate(2, 1), fate(1, 3)], [Fate::Lost, Fate::Now, Fate::Now]);
        roads.free_all();
        assert_eq!(roads.decide(1, 2, 100, now, [0.0; 2]), Fate::Now);
    }

    #[test]
    fn a_rough_road_loses_its_share_and_lets_packets_overtake() {
        let (mut roads, now) = (Roads::default(), Instant::now());
        roads.set(1, 2, Road::Rough { loss: 0.1, delay_max: 40 * MS });
        let mut fate = |draws| roads.decide(1, 2, 100, now, draws);
        assert_eq!(fate([0.09, 0.0]), Fate::Lost);
        assert_eq!(fate([0.1, 0.75]), Fate::At(now + 30 * MS));
        assert_eq!(fate([0.9, 0.25]), Fate::At(now + 10 * MS), "before the one that set out first");
    }

    #[test]
    fn on_a_narrow_road_packets_wait_for_each_other_until_there_are_too_many() {
        let (mut roads, now) = (Roads::default(), Instant::now());
        roads.set(1, 2, Road::Narrow { delay: 80 * MS, bytes_per_second: 1000 });
        let mut fate = |bytes, now| roads.decide(1, 2, bytes, now, [0.0; 2]);
        assert_eq!(fate(100, now), Fate::At(now + 180 * MS));
        assert_eq!(fate(100, now), Fate::At(now + 280 * MS));
        assert_eq!(fate(100, now + 500 * MS), Fate::At(now + 680 * MS), "the road was free again");
        assert_eq!(fate(1500, now + 600 * MS), Fate::At(now + 2180 * MS));
        assert_eq!(fate(100, now + 600 * MS), Fate::Lost, "1.5 s behind");
    }
}
