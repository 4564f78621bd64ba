//! Which backend gets the next request: a pure choice over the seats as they are now.

use cluster_config::llm_config::Balance;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::super::Affinity;

/// With an affinity a backend may have this many times its share of the requests before the next in the affinity's order is asked.
const LOAD_BOUND: f64 = 1.25;

/// A backend as the choice sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    pub(super) id: u64,
    pub(super) weight: u32,
    /// Lower ones first.
    pub(super) priority: u32,
    pub(super) in_flight: usize,
    pub(super) in_flight_max: usize,
    pub(super) is_usable: bool,
    /// Requests of others there.
    pub(super) foreign: usize,
    /// Seconds to the first token; `None`: not known yet.
    pub(super) cost: Option<f64>,
    /// Factor of the cost, at least 1.
    pub(super) penalty: f64,
}

impl Seat {
    fn is_free(&self) -> bool {
        self.is_usable && self.in_flight < self.in_flight_max
    }

    /// Requests there with one more, for its weight.
    fn load(&self) -> f64 {
        (self.in_flight + self.foreign + 1) as f64 * self.penalty / f64::from(self.weight)
    }
}

/// What decides among equals and picks the two of `p2c`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chance {
    /// Counts up with each choice.
    pub(super) turn: u64,
    /// Two numbers of 0..1.
    pub(super) draws: (f64, f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// This one.
    Take(u64),
    /// Some are usable, all of those are full: waiting helps.
    AllFull,
    /// Waiting does not help.
    NoneUsable,
}

/// Among the free seats of the lowest priority number that has any.
pub(super) fn choose(balance: Balance, seats: &[Seat], affinity: Affinity, chance: Chance) -> Choice {
    if !seats.iter().any(|seat| seat.is_usable) {
        return Choice::NoneUsable;
    }
    let Some(priority) = seats.iter().filter(|seat| seat.is_free()).map(|seat| seat.priority).min() else {
        return Choice::AllFull;
    };
    let tier: Vec<Seat> = seats.iter().copied().filter(|seat| seat.is_usable && seat.priority == priority).collect();
    let chosen = match balance {
        Balance::LeastConn => least_loaded(&tier, chance.turn),
        Balance::P2c => better_of_two(&tier, chance),
        Balance::IpHash => by_affinity(&tier, affinity.client).or_else(|| least_loaded(&tier, chance.turn)),
        Balance::PrefixHash => by_affinity(&tier, affinity.prefix).or_else(|| least_loaded(&tier, chance.turn)),
    };
    chosen.map_or(Choice::AllFull, Choice::Take)
}

/// The fewest requests for its weight; in turn among equals.
fn least_loaded(tier: &[Seat], turn: u64) -> Option<u64> {
    let count = tier.len().max(1);
    let order = |place: usize| (place + count - (turn % count as u64) as usize) % count;
    let free = tier.iter().enumerate().filter(|(_, seat)| seat.is_free());
    let least = free.min_by(|(a, x), (b, y)| x.load().total_cmp(&y.load()).then_with(|| order(*a).cmp(&order(*b))));
    least.map(|(_, seat)| seat.id)
}

/// Two by chance, and of those the one where the request would wait less: (requests there) x (seconds to the first token).
fn better_of_two(tier: &[Seat], chance: Chance) -> Option<u64> {
    let free: Vec<&Seat> = tier.iter().filter(|seat| seat.is_free()).collect();
    let pick = |draw: f64, count: usize| ((draw * count as f64) as usize).min(count.saturating_sub(1));
    let first = pick(chance.draws.0, free.len());
    let a = *free.get(first)?;
    if free.len() == 1 {
        return Some(a.id);
    }
    // The second draw is among the others.
    let second = pick(chance.draws.1, free.len() - 1);
    let b = free[if second >= first { second + 1 } else { second }];
    // Nothing known of one: it is given the other's time, so that it gets its share and becomes known.
    let known = a.cost.or(b.cost).unwrap_or(1.0);
    let expected = |seat: &Seat| seat.load() * seat.cost.unwrap_or(known);
    Some(if expected(b) < expected(a) { b.id } else { a.id })
}

/// The first in the affinity's own order that has no more than its share. `None` without an affinity, or where all have more.
fn by_affinity(tier: &[Seat], affinity: Option<u64>) -> Option<u64> {
    let affinity = affinity?;
    let in_flight: usize = tier.iter().map(|seat| seat.in_flight).sum();
    let weights: f64 = tier.iter().map(|seat| f64::from(seat.weight)).sum();
    let has_room = |seat: &&Seat| {
        let share = (in_flight + 1) as f64 * f64::from(seat.weight) / weights;
        seat.is_free() && (seat.in_flight + 1) as f64 <= (LOAD_BOUND * share).ceil()
    };
    let ranked = tier.iter().filter(has_room).max_by(|a, b| draw(a, affinity).total_cmp(&draw(b, affinity)));
    ranked.map(|seat| seat.id)
}

/// Weighted rendezvous hashing: each seat draws a number for the affinity, the largest wins. Adding or losing a backend moves
/// only the affinities it wins or held.
fn draw(seat: &Seat, affinity: u64) -> f64 {
    let hash = xxh3_64_with_seed(&affinity.to_le_bytes(), seat.id);
    let uniform = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    f64::from(seat.weight) / -uniform.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(id: u64, weight: u32, in_flight: usize) -> Seat {
        Seat {
            id,
            weight,
            priority: 0,
            in_flight,
            in_flight_max: 4,
            is_usable: true,
            foreign: 0,
            cost: None,
            penalty: 1.0,
        }
    }

    const NO_AFFINITY: Affinity = Affinity { client: None, prefix: None };

    fn chance(turn: u64) -> Chance {
        // Low-discrepancy draws: as even as chance is on average.
        let at = |step: f64| (turn as f64 * step).fract();
        Chance { turn, draws: (at(0.618_034), at(0.754_878)) }
    }

    /// Requests each seat gets when `count` come and none ends.
    fn spread(balance: Balance, weights: &[u32], count: usize) -> Vec<usize> {
        let mut seats: Vec<Seat> =
            (0..).zip(weights).map(|(id, weight)| Seat { in_flight_max: count, ..seat(id, *weight, 0) }).collect();
        for turn in 0..count as u64 {
            let affinity = Affinity { client: Some(turn), prefix: None };
            let Choice::Take(id) = choose(balance, &seats, affinity, chance(turn)) else { panic!("there is room") };
            seats[id as usize].in_flight += 1;
        }
        seats.iter().map(|seat| seat.in_flight).collect()
    }

    #[test]
    fn all_follow_the_weights() {
        assert_eq!(spread(Balance::LeastConn, &[1, 1, 1], 9), [3, 3, 3]);
        assert_eq!(spread(Balance::LeastConn, &[1, 2], 9), [3, 6]);
        let p2c = spread(Balance::P2c, &[1, 3], 400);
        assert!((95..105).contains(&p2c[0]), "{p2c:?}");
        let hashed = spread(Balance::IpHash, &[1, 3], 4000);
        assert!((900..1100).contains(&hashed[0]), "{hashed:?}");
    }

    #[test]
    fn equals_take_turns_even_when_requests_end_at_once() {
        let seats = [seat(0, 1, 0), seat(1, 1, 0), seat(2, 1, 0)];
        let order: Vec<Choice> =
            (0..6).map(|turn| choose(Balance::LeastConn, &seats, NO_AFFINITY, chance(turn))).collect();
        assert_eq!(order, [0, 1, 2, 0, 1, 2].map(Choice::Take));
    }

    /// A closed loop of `clients` on two backends, the second ten times slower, in steps of one service time of the faster.
    #[test]
    fn p2c_gives_a_backend_ten_times_slower_under_a_fifth() {
        for clients in [1, 2, 4, 8, 16] {
            let slowness = [1_u64, 10];
            let mut seats = [
                Seat { in_flight_max: 64, cost: Some(0.1), ..seat(0, 1, 0) },
                Seat { in_flight_max: 64, cost: Some(1.0), ..seat(1, 1, 0) },
            ];
            let mut given = [0_usize; 2];
            let mut running: Vec<(u64, u64)> = Vec::new();
            for turn in 0..2000 {
                running.retain(|(ends, id)| {
                    let is_over = *ends <= turn;
                    if is_over {
                        seats[*id as usize].in_flight -= 1;
                    }
                    !is_over
                });
                while running.len() < clients {
                    let draws = chance(turn * 16 + running.len() as u64);
                    let Choice::Take(id) = choose(Balance::P2c, &seats, NO_AFFINITY, draws) else { panic!("room") };
                    seats[id as usize].in_flight += 1;
                    given[id as usize] += 1;
                    running.push((turn + slowness[id as usize], id));
                }
            }
            let share = given[1] as f64 / (given[0] + given[1]) as f64;
            assert!(share < 0.2, "{clients} clients: {share}");
        }
    }

    #[test]
    fn p2c_makes_the_unknown_known_and_heeds_what_servers_tell() {
        let known = Seat { cost: Some(0.2), ..seat(0, 1, 1) };
        let unknown = seat(1, 1, 0);
        assert_eq!(choose(Balance::P2c, &[known, unknown], NO_AFFINITY, chance(1)), Choice::Take(1));
        let crowded = Seat { foreign: 5, ..seat(0, 1, 0) };
        let cold = Seat { penalty: 3.0, ..seat(2, 1, 0) };
        for balance in [Balance::P2c, Balance::LeastConn] {
            for turn in 0..8 {
                assert_eq!(choose(balance, &[crowded, seat(1, 1, 1)], NO_AFFINITY, chance(turn)), Choice::Take(1));
                assert_eq!(choose(balance, &[cold, seat(3, 1, 1)], NO_AFFINITY, chance(turn)), Choice::Take(3));
            }
        }
    }

    #[test]
    fn an_affinity_keeps_its_backend_until_it_is_full_or_gone() {
        let client = |client| Affinity { client: Some(client), prefix: None };
        let mut seats = [seat(0, 1, 0), seat(1, 1, 0), seat(2, 1, 0)];
        let Choice::Take(home) = choose(Balance::IpHash, &seats, client(7), chance(0)) else { panic!("room") };
        assert_eq!(choose(Balance::IpHash, &seats, client(7), chance(5)), Choice::Take(home));
        seats[home as usize].in_flight = 4;
        let Choice::Take(second) = choose(Balance::IpHash, &seats, client(7), chance(0)) else { panic!("room") };
        assert_ne!(second, home);
        for other in 0..200 {
            let before =
                choose(Balance::IpHash, &[seat(0, 1, 0), seat(1, 1, 0), seat(2, 1, 0)], client(other), chance(0));
            let after = choose(Balance::IpHash, &[seat(0, 1, 0), seat(1, 1, 0)], client(other), chance(0));
            assert!(before == after || before == Choice::Take(2), "only the lost backend's affinities move");
        }
    }

    #[test]
    fn one_hot_affinity_does_not_pile_up_on_one_backend() {
        let mut seats = [0, 1, 2, 3].map(|id| Seat { in_flight_max: 100, ..seat(id, 1, 0) });
        for turn in 0..100 {
            let hot = Affinity { client: None, prefix: Some(42) };
            let Choice::Take(id) = choose(Balance::PrefixHash, &seats, hot, chance(turn)) else { panic!("room") };
            seats[id as usize].in_flight += 1;
        }
        let most = seats.iter().map(|seat| seat.in_flight).max();
        assert!(most <= Some(32), "a quarter more than its share, and the rounding: {seats:?}");
    }

    #[test]
    fn a_lower_priority_serves_when_the_higher_is_full_or_down() {
        let spare = Seat { priority: 1, ..seat(1, 1, 0) };
        let take = |first: Seat| choose(Balance::LeastConn, &[first, spare], NO_AFFINITY, chance(0));
        assert_eq!(take(seat(0, 1, 3)), Choice::Take(0));
        assert_eq!(take(seat(0, 1, 4)), Choice::Take(1));
        assert_eq!(take(Seat { is_usable: false, ..seat(0, 1, 0) }), Choice::Take(1));
    }

    #[test]
    fn full_and_unusable_are_told_apart() {
        let full = seat(0, 1, 4);
        let ill = Seat { is_usable: false, ..seat(1, 1, 0) };
        assert_eq!(choose(Balance::LeastConn, &[full, ill], NO_AFFINITY, chance(0)), Choice::AllFull);
        assert_eq!(choose(Balance::LeastConn, &[ill], NO_AFFINITY, chance(0)), Choice::NoneUsable);
        assert_eq!(choose(Balance::LeastConn, &[], NO_AFFINITY, chance(0)), Choice::NoneUsable);
    }
}
