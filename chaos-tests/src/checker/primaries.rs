//! One primary per term: a term of a shard is granted to one copy, once.

use std::collections::BTreeMap;

use super::Finding;
use crate::observer::Look;

/// Checks everything that was seen of the registers.
pub fn check(looks: &[Look]) -> Finding {
    let mut finding = Finding { promise: "one primary per term", checked: 0, breaches: Vec::new() };
    let mut holders: BTreeMap<(&str, u64), u64> = BTreeMap::new();
    for register in looks.iter().flat_map(|look| &look.registers) {
        let Some((primary, _)) = register.primary else { continue };
        let holder = *holders.entry((&register.shard, register.term)).or_insert_with(|| {
            finding.checked += 1;
            primary
        });
        if holder != primary {
            finding.breaches.push(format!(
                "shard {} term {}: copy {holder} and copy {primary} were primary",
                register.shard, register.term
            ));
        }
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::by_hand::{look, register};

    #[test]
    fn a_term_has_one_holder() {
        let kept = [look(1, 1, register(1, 1, 1, &[1, 2])), look(2, 2, register(2, 2, 2, &[2]))];
        assert!(check(&kept).is_kept());
        let broken = [look(1, 1, register(1, 1, 1, &[1, 2])), look(2, 2, register(2, 1, 2, &[2]))];
        assert_eq!(check(&broken).breaches.len(), 1);
    }
}
