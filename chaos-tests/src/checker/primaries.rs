//! One primary per term: a term of a shard is granted to one copy, once, and nobody else takes itself for the primary in it.
//!
//! A node shows the highest term on its disk, so one that was granted a term a moment ago may still show one of its predecessors'. A claim of
//! a term that was another's, or nobody knows whose, is excused by that: by a later term that was granted to the node, or whose holder was
//! not seen. Of those who are not excused one may have held a term that nobody saw being granted; two cannot have.

use std::collections::BTreeMap;

use super::Finding;
use crate::claims::Claim;
use crate::observer::{Look, Register};

/// The copy and the node that a term was granted to, by collection, shard and term.
type Holders<'a> = BTreeMap<(&'a str, u64, u64), (u64, u64)>;

/// Checks everything that was seen of the registers, and what nodes said of themselves, with the instant at which they had said it.
pub fn check(looks: &[Look], claims: &BTreeMap<Claim, u64>) -> Finding {
    let mut finding = Finding { promise: "one primary per term", checked: 0, breaches: Vec::new() };
    let mut holders = Holders::new();
    for register in looks.iter().flat_map(|look| &look.registers) {
        let Some(primary) = register.primary else { continue };
        let holder = *holders.entry((&register.collection, register.index, register.term)).or_insert_with(|| {
            finding.checked += 1;
            primary
        });
        if holder != primary {
            finding.breaches.push(format!(
                "shard {} term {}: copy {} and copy {} were primary",
                register.shard, register.term, holder.0, primary.0
            ));
        }
    }
    let mut by_call: Vec<&Look> = looks.iter().collect();
    by_call.sort_by_key(|look| look.called_us);
    // The first to claim a term whose holder was not seen: claims are in the order of shards, terms and nodes.
    let mut possible_holder: Option<&Claim> = None;
    for (claim, seen_us) in claims {
        let holder = holders.get(&(claim.collection.as_str(), claim.index, claim.term)).map(|(_, node)| *node);
        if holder == Some(claim.node) {
            finding.checked += 1;
            continue;
        }
        // The first look that was begun after the claim: until it, no higher term can have been granted than it shows.
        let later = &by_call[by_call.partition_point(|look| look.called_us < *seen_us)..];
        let agreed = later.iter().find_map(|look| look.register(&claim.collection, claim.index));
        let Some(agreed) = agreed else { continue };
        if claim.term > agreed.term {
            finding.breaches.push(format!("{claim:?}, but term {} was the highest granted by then", agreed.term));
            continue;
        }
        if is_excused(claim, agreed, &holders) {
            continue;
        }
        finding.checked += 1;
        let other = possible_holder.filter(|other| {
            (&other.collection, other.index, other.term) == (&claim.collection, claim.index, claim.term)
        });
        match (holder, other) {
            (Some(holder), _) => {
                finding.breaches.push(format!("{claim:?}, but the term was granted to node {holder}"));
            }
            (None, Some(other)) => {
                finding.breaches.push(format!("{claim:?}, and so did node {}", other.node));
            }
            (None, None) => possible_holder = Some(claim),
        }
    }
    finding
}

/// Whether the node may have been granted a later term by then, and be about to write that down.
fn is_excused(claim: &Claim, agreed: &Register, holders: &Holders<'_>) -> bool {
    (claim.term + 1..=agreed.term).any(|term| {
        let holder = holders.get(&(claim.collection.as_str(), claim.index, term));
        holder.is_none_or(|(_, node)| *node == claim.node)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::by_hand::{look, register};

    fn claims(made: &[(u64, u64, u64)]) -> BTreeMap<Claim, u64> {
        let claim = |(term, node, seen_us): &(u64, u64, u64)| {
            (Claim { collection: "c".into(), index: 0, term: *term, node: *node }, *seen_us)
        };
        made.iter().map(claim).collect()
    }

    /// Copy 1 on node 1 in term 1, then copy 2 on node 2 in term 2; looked at from 10, 20 and 30 us on.
    fn looks() -> [Look; 3] {
        [
            look(1, 1, register(1, 1, 1, &[1, 2])),
            look(2, 2, register(2, 2, 2, &[2])),
            look(3, 2, register(2, 2, 2, &[2])),
        ]
    }

    #[test]
    fn a_term_has_one_holder() {
        assert!(check(&looks(), &BTreeMap::new()).is_kept());
        let broken = [look(1, 1, register(1, 1, 1, &[1, 2])), look(2, 2, register(2, 1, 2, &[2]))];
        assert_eq!(check(&broken, &BTreeMap::new()).breaches.len(), 1);
    }

    #[test]
    fn nobody_else_takes_itself_for_it() {
        for (term, node, why) in [
            (2, 1, "while the term is another's"),
            (3, 2, "in a term that nobody was granted"),
            (1, 3, "in one that is over, and was never granted a later one"),
        ] {
            assert_eq!(check(&looks(), &claims(&[(term, node, 25)])).breaches.len(), 1, "{why}");
        }
    }

    #[test]
    fn who_was_granted_it_may_and_who_is_late_with_its_disk() {
        for (held, counted) in [((1, 1, 5), 3), ((1, 1, 25), 3), ((2, 2, 22), 3), ((1, 2, 25), 2)] {
            let finding = check(&looks(), &claims(&[held]));
            assert!(finding.breaches.is_empty(), "{finding}");
            assert_eq!(finding.checked, counted, "{held:?}");
        }
        assert!(check(&looks(), &claims(&[(7, 1, 99)])).is_kept(), "nothing was looked at afterwards");
    }

    #[test]
    fn of_a_term_that_nobody_saw_granted_one_node_may_be_the_holder() {
        // Term 2 came and went between two looks.
        let looks = [
            look(1, 1, register(1, 1, 1, &[1, 2])),
            look(2, 3, register(3, 3, 2, &[2])),
            look(3, 3, register(3, 3, 2, &[2])),
        ];
        for made in [&[(2, 1, 25)][..], &[(2, 1, 25), (2, 2, 25)], &[(1, 3, 25)]] {
            assert!(check(&looks, &claims(made)).breaches.is_empty(), "{made:?}");
        }
        let broken = check(&looks, &claims(&[(2, 1, 25), (2, 2, 25), (2, 3, 25)]));
        assert_eq!(broken.breaches.len(), 1, "node 2 was granted term 3, nodes 1 and 3 nothing later: {broken}");
    }
}
