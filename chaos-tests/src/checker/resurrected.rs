//! A deleted document stays deleted: once a delete was acknowledged, no read that must see it finds what it removed.

use super::{Finding, by_document};
use crate::history::{Level, Operation};

/// Checks strong and final reads; weaker ones may be older than the delete.
pub fn check(history: &[Operation]) -> Finding {
    let mut finding = Finding { promise: "no deleted document comes back", checked: 0, breaches: Vec::new() };
    for (key, document) in by_document(history) {
        if document.writes.iter().all(|(version, _)| version.is_some()) {
            continue;
        }
        let up_to_date = |level: &Level| matches!(level, Level::Strong | Level::Final);
        for (found, _, read) in document.reads.iter().filter(|(_, level, _)| up_to_date(level)) {
            finding.checked += 1;
            let Some((version, put)) = found.and_then(|version| Some((version, document.put_of(version)?))) else {
                continue;
            };
            let deleted = document
                .writes
                .iter()
                .find(|(deletes, write)| deletes.is_none() && put.is_before(write) && write.is_before(read));
            if let Some((_, delete)) = deleted {
                finding.breaches.push(format!(
                    "document {key}: deleted at {} us, version {version} found at {} us",
                    delete.answered_us, read.called_us
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

    #[test]
    fn a_document_put_again_or_deleted_at_the_same_time_may_be_there() {
        let histories = [
            vec![put(1, 10, 0, 5), delete(1, 6, 7), put(1, 11, 8, 9), at_last(1, Some(11))],
            vec![put(1, 10, 0, 9), delete(1, 6, 7), at_last(1, Some(10))],
            vec![unknown(put(1, 10, 0, 5)), delete(1, 6, 7), at_last(1, Some(10))],
            vec![put(1, 10, 0, 5), unknown(delete(1, 6, 7)), at_last(1, Some(10))],
            vec![put(1, 10, 0, 5), delete(1, 6, 9), read(Level::Strong, 1, Some(10), 8, 20)],
        ];
        for history in histories {
            let finding = check(&history);
            assert!(finding.is_kept(), "{finding}");
        }
    }

    #[test]
    fn one_that_was_deleted_for_certain_may_not() {
        for level in [Level::Strong, Level::Final] {
            let history = [put(1, 10, 0, 5), delete(1, 6, 7), read(level, 1, Some(10), 8, 9)];
            assert_eq!(check(&history).breaches.len(), 1);
        }
    }
}
