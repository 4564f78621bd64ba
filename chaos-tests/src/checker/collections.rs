//! A collection exists from the acknowledgement of its creation until it is deleted, and never again: metadata is linearizable for those who
//! change it, too.

use std::time::Duration;

use super::Finding;
use crate::history::Outcome;
use crate::observer::Look;
use crate::workload::collections::Life;

/// A creation that took longer may have been sent to a second node; what the first one still does about it nobody knows.
const ONE_ATTEMPT: Duration = Duration::from_secs(2);

/// Holds every look against every collection.
pub fn check(lives: &[Life], looks: &[Look]) -> Finding {
    let promise = "an acknowledged collection exists until its deletion";
    let mut finding = Finding { promise, checked: 0, breaches: Vec::new() };
    for life in lives {
        for look in looks {
            let Some(must_exist) = must_exist(life, look) else { continue };
            finding.checked += 1;
            let exists = look.collections.contains(&life.name);
            if exists != must_exist {
                let state = if exists { "is there" } else { "is not there" };
                let (name, created, deleted) = (&life.name, &life.created, &life.deleted);
                finding.breaches.push(format!("{name} {state} at {} us: {created:?}, {deleted:?}", look.called_us));
            }
        }
    }
    finding
}

/// Whether the look must show the collection, or must not; `None`: it may.
fn must_exist(life: &Life, look: &Look) -> Option<bool> {
    let (created, deleted) = (&life.created, &life.deleted);
    if look.answered_us < created.called_us || created.outcome == Outcome::Failed {
        return Some(false);
    }
    if created.outcome == Outcome::Unknown || look.called_us <= created.answered_us {
        return None;
    }
    if look.answered_us < deleted.called_us {
        return Some(true);
    }
    let is_gone = deleted.outcome == Outcome::Ok && deleted.answered_us < look.called_us;
    let created_once = created.answered_us - created.called_us < ONE_ATTEMPT.as_micros() as u64;
    (is_gone && created_once).then_some(false)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::observer::by_hand::{look, register};
    use crate::workload::collections::Call;

    fn life(created: Outcome, deleted: Outcome) -> Life {
        let call = |called_us, outcome| Call { called_us, answered_us: called_us + 10, outcome };
        Life { name: "l".into(), created: call(100, created), deleted: call(200, deleted) }
    }

    fn seen(at_us: u64, exists: bool) -> Look {
        let collections: BTreeSet<String> = exists.then(|| "l".to_owned()).into_iter().collect();
        Look { called_us: at_us, answered_us: at_us + 5, collections, ..look(1, 1, register(1, 1, 1, &[1])) }
    }

    fn breaches(life: &Life, at_us: u64, exists: bool) -> usize {
        check(std::slice::from_ref(life), &[seen(at_us, exists)]).breaches.len()
    }

    #[test]
    fn what_was_acknowledged_is_seen_and_what_overlaps_may_be() {
        let whole = life(Outcome::Ok, Outcome::Ok);
        for (at_us, must_exist) in [(50, false), (120, true), (190, true), (220, false)] {
            assert_eq!((breaches(&whole, at_us, must_exist), breaches(&whole, at_us, !must_exist)), (0, 1), "{at_us}");
        }
        for at_us in [98, 105, 198, 205] {
            assert_eq!(breaches(&whole, at_us, true) + breaches(&whole, at_us, false), 0, "{at_us}");
        }
    }

    #[test]
    fn what_was_not_may_be_either() {
        let unknown = [life(Outcome::Unknown, Outcome::Ok), life(Outcome::Ok, Outcome::Unknown)];
        for life in unknown {
            assert_eq!(breaches(&life, 220, true) + breaches(&life, 220, false), 0, "{life:?}");
        }
        assert_eq!(breaches(&life(Outcome::Failed, Outcome::Ok), 120, true), 1, "refused");
        let mut slow = life(Outcome::Ok, Outcome::Ok);
        slow.deleted.called_us += 5_000_000;
        slow.created.answered_us += 4_000_000;
        slow.deleted.answered_us += 5_000_000;
        assert_eq!(breaches(&slow, 6_000_000, true), 0, "perhaps created twice");
    }
}
