//! Which backend gets the next request: a pure choice over the seats as they are now.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How requests are spread. The names are those of nginx' `upstream`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// To the one with the fewest running requests for its weight; in turn among equals.
    #[default]
    LeastConn,
    /// Requests of one affinity to one backend while it can take them (its prompt cache knows their beginning), then to the next in
    /// that affinity's own order. Without an affinity as `LeastConn`.
    IpHash,
}

/// A backend as the choice sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    pub(super) place: usize,
    pub(super) weight: u32,
    pub(super) in_flight: usize,
    pub(super) in_flight_max: usize,
    pub(super) is_usable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// This place.
    Take(usize),
    /// Some are usable, all of those are full: waiting helps.
    AllFull,
    /// Waiting does not help.
    NoneUsable,
}

pub(super) fn choose(balance: Balance, seats: &[Seat], affinity: Option<u64>, turn: usize) -> Choice {
    if !seats.iter().any(|seat| seat.is_usable) {
        return Choice::NoneUsable;
    }
    let free = seats.iter().filter(|seat| seat.is_usable && seat.in_flight < seat.in_flight_max);
    let chosen = match (balance, affinity) {
        (Balance::IpHash, Some(affinity)) => free.max_by(|a, b| draw(a, affinity).total_cmp(&draw(b, affinity))),
        _ => {
            // (in_flight + 1) / weight, compared without dividing.
            let load = |a: &Seat, b: &Seat| (a.in_flight as u64 + 1) * u64::from(b.weight);
            let count = seats.len();
            let order = |seat: &Seat| (seat.place + count - turn % count) % count;
            free.min_by(|a, b| load(a, b).cmp(&load(b, a)).then_with(|| order(a).cmp(&order(b))))
        }
    };
    chosen.map_or(Choice::AllFull, |seat| Choice::Take(seat.place))
}

/// Weighted rendezvous hashing: each seat draws a number for the affinity, the largest wins. Adding or losing a backend moves
/// only the affinities it wins or held.
fn draw(seat: &Seat, affinity: u64) -> f64 {
    let hash = xxh3_64_with_seed(&affinity.to_le_bytes(), seat.place as u64);
    let uniform = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    f64::from(seat.weight) / -uniform.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(place: usize, weight: u32, in_flight: usize) -> Seat {
        Seat { place, weight, in_flight, in_flight_max: 4, is_usable: true }
    }

    /// Requests each seat gets when `count` come and none ends.
    fn spread(balance: Balance, weights: &[u32], count: usize) -> Vec<usize> {
        let mut seats: Vec<Seat> = weights
            .iter()
            .enumerate()
            .map(|(place, weight)| Seat { in_flight_max: count, ..seat(place, *weight, 0) })
            .collect();
        for turn in 0..count {
            let affinity = (balance == Balance::IpHash).then_some(turn as u64);
            let Choice::Take(place) = choose(balance, &seats, affinity, turn) else { panic!("there is room") };
            seats[place].in_flight += 1;
        }
        seats.iter().map(|seat| seat.in_flight).collect()
    }

    #[test]
    fn both_follow_the_weights() {
        assert_eq!(spread(Balance::LeastConn, &[1, 1, 1], 9), [3, 3, 3]);
        assert_eq!(spread(Balance::LeastConn, &[1, 2], 9), [3, 6]);
        let hashed = spread(Balance::IpHash, &[1, 3], 4000);
        assert!((900..1100).contains(&hashed[0]), "{hashed:?}");
    }

    #[test]
    fn equals_take_turns_even_when_requests_end_at_once() {
        let seats = [seat(0, 1, 0), seat(1, 1, 0), seat(2, 1, 0)];
        let order: Vec<Choice> = (0..6).map(|turn| choose(Balance::LeastConn, &seats, None, turn)).collect();
        assert_eq!(order, [0, 1, 2, 0, 1, 2].map(Choice::Take));
    }

    #[test]
    fn an_affinity_keeps_its_backend_until_it_is_full_or_gone() {
        let mut seats = [seat(0, 1, 0), seat(1, 1, 0), seat(2, 1, 3)];
        let Choice::Take(home) = choose(Balance::IpHash, &seats, Some(7), 0) else { panic!("there is room") };
        assert_eq!(choose(Balance::IpHash, &seats, Some(7), 5), Choice::Take(home));
        seats[home].in_flight = 4;
        let Choice::Take(second) = choose(Balance::IpHash, &seats, Some(7), 0) else { panic!("there is room") };
        assert_ne!(second, home);
        for other in 0..200 {
            let before = choose(Balance::IpHash, &[seat(0, 1, 0), seat(1, 1, 0), seat(2, 1, 0)], Some(other), 0);
            let after = choose(Balance::IpHash, &[seat(0, 1, 0), seat(1, 1, 0)], Some(other), 0);
            assert!(before == after || before == Choice::Take(2), "only the lost backend's affinities move");
        }
    }

    #[test]
    fn full_and_unusable_are_told_apart() {
        let full = Seat { in_flight: 4, ..seat(0, 1, 0) };
        let ill = Seat { is_usable: false, ..seat(1, 1, 0) };
        assert_eq!(choose(Balance::LeastConn, &[full, ill], None, 0), Choice::AllFull);
        assert_eq!(choose(Balance::LeastConn, &[ill], None, 0), Choice::NoneUsable);
        assert_eq!(choose(Balance::LeastConn, &[], None, 0), Choice::NoneUsable);
    }
}
