//! The metadata is one linearizable register per shard, changed by compare-and-set: a look that began after another had ended never
//! shows an older state, one version has one content, and terms and lineages never fall.

use std::collections::BTreeMap;

use super::Finding;
use crate::observer::{Look, Register};

/// Checks everything that was seen of the registers.
pub fn check(looks: &[Look]) -> Finding {
    let mut finding =
        Finding { promise: "metadata is linearizable, versions never fall", checked: 0, breaches: Vec::new() };
    let (mut by_call, mut by_answer): (Vec<&Look>, Vec<&Look>) = (looks.iter().collect(), looks.iter().collect());
    by_call.sort_by_key(|look| look.called_us);
    by_answer.sort_by_key(|look| look.answered_us);
    let mut answered = by_answer.into_iter().peekable();
    let mut newest: Option<&Look> = None;
    for after in by_call {
        while let Some(before) = answered.next_if(|before| before.answered_us < after.called_us) {
            newest = newest.filter(|newest| newest.state_version >= before.state_version).or(Some(before));
        }
        let Some(before) = newest else { continue };
        finding.checked += 1;
        if after.state_version < before.state_version {
            finding.breaches.push(format!(
                "state version {} seen at {} us, then {} at {} us",
                before.state_version, before.answered_us, after.state_version, after.called_us
            ));
        }
    }
    let mut contents: BTreeMap<(&str, u64), &Register> = BTreeMap::new();
    for register in looks.iter().flat_map(|look| &look.registers) {
        let known = *contents.entry((&register.shard, register.version)).or_insert(register);
        if known != register {
            finding.breaches.push(format!("one version, two contents: {known:?} and {register:?}"));
        }
    }
    let registers: Vec<&Register> = contents.into_values().collect();
    for pair in registers.windows(2).filter(|pair| pair[0].shard == pair[1].shard) {
        if pair[1].term < pair[0].term || pair[1].lineage < pair[0].lineage {
            finding.breaches.push(format!("term or lineage fell: {:?}, then {:?}", pair[0], pair[1]));
        }
        if pair[1].term == pair[0].term && pair[1].primary.is_some() && pair[1].primary != pair[0].primary {
            finding.breaches.push(format!("the primary changed without a term: {:?}, then {:?}", pair[0], pair[1]));
        }
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::by_hand::{look, register};

    #[test]
    fn a_register_that_moves_on_is_fine() {
        let looks = [
            look(1, 1, register(1, 1, 1, &[1, 2])),
            look(2, 2, register(2, 2, 2, &[2])),
            look(3, 2, register(2, 2, 2, &[2])),
            look(4, 3, register(3, 2, 2, &[1, 2])),
        ];
        let finding = check(&looks);
        assert!(finding.is_kept(), "{finding}");
    }

    #[test]
    fn two_who_look_at_once_may_see_either_but_none_goes_back() {
        let at = |called_us, answered_us, state_version| Look {
            called_us,
            answered_us,
            ..look(1, state_version, register(1, 1, 1, &[1, 2]))
        };
        assert!(check(&[at(0, 30, 1), at(5, 10, 2), at(15, 40, 2), at(41, 50, 2)]).is_kept());
        // The look before it in time is old, too, and rightly so.
        let stale = [at(5, 10, 2), at(0, 30, 1), at(31, 40, 1)];
        assert_eq!(check(&stale).breaches.len(), 1);
    }

    #[test]
    fn falling_versions_terms_and_two_contents_are_not() {
        let histories = [
            [look(1, 2, register(1, 1, 1, &[1, 2])), look(2, 1, register(1, 1, 1, &[1, 2]))],
            [look(1, 1, register(1, 1, 1, &[1, 2])), look(2, 1, register(1, 1, 1, &[1]))],
            [look(1, 1, register(1, 2, 1, &[1, 2])), look(2, 2, register(2, 1, 1, &[1]))],
            [look(1, 1, register(1, 2, 1, &[1, 2])), look(2, 2, register(2, 2, 2, &[1]))],
        ];
        for looks in histories {
            assert_eq!(check(&looks).breaches.len(), 1, "{looks:?}");
        }
    }
}
