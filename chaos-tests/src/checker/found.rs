//! Every document that must be there is found by its own vector, with the settings a user gets unasked.
//!
//! The final reads are exact; these are not, so this one is about the index: a document that is stored but not searchable is lost
//! to whoever searches.

use std::collections::BTreeSet;

use super::Finding;
use crate::history::{Action, Key, Level, Operation};

const PROMISE: &str = "every document is found by its own vector";

/// `searched` are the documents that a plain search for their vector found; those that were stored are told by the final reads.
pub fn check(history: &[Operation], searched: &BTreeSet<Key>) -> Finding {
    let mut finding = Finding { promise: PROMISE, checked: 0, breaches: Vec::new() };
    for operation in history {
        if let Action::Read { key, found: Some(version), level: Level::Final } = operation.action {
            finding.checked += 1;
            if !searched.contains(&key) {
                finding.breaches.push(format!("document {key}: version {version} is stored, but no search finds it"));
            }
        }
    }
    finding
}

/// Where not every document could be read back and searched for.
pub fn not_searched(reason: &anyhow::Error) -> Finding {
    Finding { promise: PROMISE, checked: 0, breaches: vec![format!("not every document could be read: {reason:#}")] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::by_hand::*;

    #[test]
    fn what_is_stored_must_be_found() {
        let history = [at_last(1, Some(10)), at_last(2, None), at_last(3, Some(11))];
        assert!(check(&history, &BTreeSet::from([1, 3])).is_kept());
        assert_eq!(check(&history, &BTreeSet::from([1, 2])).breaches.len(), 1);
    }
}
