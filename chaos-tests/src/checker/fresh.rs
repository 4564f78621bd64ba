//! An eventual read is never older than the staleness bound, whichever coordinator, copy or cache tier answered it.

use super::{Finding, by_document, told};
use crate::history::{Level, Operation};

/// Holds each read at that level against the writes acknowledged at least `bound_us` before it was called.
pub fn check(history: &[Operation], wanted: Level, bound_us: u64) -> Finding {
    let mut finding =
        Finding { promise: "an eventual read is not older than the bound", checked: 0, breaches: Vec::new() };
    for (key, document) in by_document(history) {
        for (found, level, read) in &document.reads {
            if *level != wanted {
                continue;
            }
            let horizon_us = read.called_us.saturating_sub(bound_us);
            let is_due = |write: &&Operation| write.done_us().is_some_and(|done| done < horizon_us);
            let due: Vec<&Operation> = document.writes.iter().map(|(_, write)| *write).filter(is_due).collect();
            if due.is_empty() {
                continue;
            }
            finding.checked += 1;
            if let Some(newer) = due.iter().find(|newer| !document.may_be_after(*found, newer)) {
                finding.breaches.push(format!(
                    "document {key}: read at {} us found {found:?}, though {} was acknowledged at {} us",
                    read.called_us,
                    told(newer),
                    newer.answered_us,
                ));
            }
        }
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::by_hand::*;

    const BOUND_US: u64 = 100;

    fn seen(found: Option<u64>, at_us: u64) -> Operation {
        read(Level::Eventual, 1, found, at_us, at_us + 1)
    }

    #[test]
    fn old_text_is_borne_within_the_bound_and_not_after() {
        let writes = [put(1, 10, 0, 5), put(1, 11, 20, 25)];
        let check_read = |found, at_us| {
            let history: Vec<Operation> = writes.iter().cloned().chain([seen(found, at_us)]).collect();
            check(&history, Level::Eventual, BOUND_US)
        };
        assert!(check_read(Some(10), 125).is_kept(), "exactly at the bound");
        assert!(!check_read(Some(10), 126).is_kept());
        assert!(check_read(Some(11), 500).is_kept());
        assert!(!check_read(None, 500).is_kept());
    }

    #[test]
    fn a_deleted_document_is_gone_after_the_bound_until_it_is_put_again() {
        let deleted = vec![put(1, 10, 0, 5), delete(1, 20, 25)];
        let with = |read| {
            let mut history = deleted.clone();
            history.push(read);
            check(&history, Level::Eventual, BOUND_US)
        };
        assert!(!with(seen(Some(10), 200)).is_kept());
        assert!(with(seen(None, 200)).is_kept());
        let mut again = deleted.clone();
        again.extend([unknown(put(1, 12, 30, 40)), seen(Some(12), 300), seen(None, 301)]);
        assert!(check(&again, Level::Eventual, BOUND_US).is_kept(), "a write of unknown outcome may or may not show");
    }

    #[test]
    fn other_levels_are_others_matter() {
        let history = [put(1, 10, 0, 5), read(Level::Session, 1, None, 500, 501)];
        assert_eq!(check(&history, Level::Eventual, BOUND_US).checked, 0);
        assert_eq!(check(&history, Level::Session, BOUND_US).breaches.len(), 1);
    }
}
