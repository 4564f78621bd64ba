//! One primary per term: a term of a shard is granted to one copy, once, and nobody else takes itself for the primary in it.

use std::collections::BTreeMap;

use super::Finding;
use crate::claims::Claim;
use crate::observer::Look;

/// Checks everything that was seen of the registers, and what nodes said of themselves, with the instant at which they had said it.
pub fn check(looks: &[Look], claims: &BTreeMap<Claim, u64>) -> Finding {
    let mut finding = Finding { promise: "one primary per term", checked: 0, breaches: Vec::new() };
    let mut holders: BTreeMap<(&str, u64, u64), (u64, u64)> = BTreeMap::new();
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
    for (claim, seen_us) in claims {
        // The first look that was begun after the claim: until it, no higher term can have been granted than it shows.
        let later = &by_call[by_call.partition_point(|look| look.called_us < *seen_us)..];
        let agreed = later.iter().find_map(|look| look.register(&claim.collection, claim.index));
        let holder = holders.get(&(claim.collection.as_str(), claim.index, claim.term)).map(|(_, node)| *node);
        match (agreed, holder) {
            (Some(agreed), _) if claim.term > agreed.term => {
                finding.breaches.push(format!("{claim:?}, but term {} was the highest granted by then", agreed.term));
            }
            (Some(agreed), Some(holder)) if claim.term == agreed.term && holder != claim.node => {
                finding.breaches.push(format!("{claim:?}, but the term was granted to node {holder}"));
            }
            (_, Some(holder)) if holder == claim.node => finding.checked += 1,
            // The term is over. Whoever was granted a later one may be about to write that down, so it says nothing.
            _ => {}
        }
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::by_hand::{look, register};

    fn claim(term: u64, node: u64, seen_us: u64) -> BTreeMap<Claim, u64> {
        BTreeMap::from([(Claim { collection: "c".into(), index: 0, term, node }, seen_us)])
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
        assert_eq!(check(&looks(), &claim(2, 1, 25)).breaches.len(), 1, "while the term is another's");
        assert_eq!(check(&looks(), &claim(3, 2, 25)).breaches.len(), 1, "in a term that nobody was granted");
    }

    #[test]
    fn who_was_granted_it_may_and_who_is_late_with_its_disk() {
        for (held, counted) in [(claim(1, 1, 5), 3), (claim(1, 1, 25), 3), (claim(2, 2, 22), 3), (claim(1, 2, 25), 2)] {
            let finding = check(&looks(), &held);
            assert!(finding.breaches.is_empty(), "{finding}");
            assert_eq!(finding.checked, counted, "{held:?}");
        }
        assert!(check(&looks(), &claim(7, 1, 99)).is_kept(), "nothing was looked at afterwards");
    }
}
