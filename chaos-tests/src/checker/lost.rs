//! No acknowledged write is lost: at the end each document is as its last writes left it.

use super::{Finding, by_document};
use crate::history::{Level, Operation};

/// Checks the final reads. A document that was not there, or older than an acknowledged put, is a loss; one that
/// an acknowledged delete should have removed is the business of `resurrected`.
pub fn check(history: &[Operation]) -> Finding {
    let mut finding = Finding { promise: "no acknowledged write is lost", checked: 0, breaches: Vec::new() };
    for (key, document) in by_document(history) {
        let acknowledged: Vec<_> =
            document.writes.iter().filter(|(version, put)| version.is_some() && put.done_us().is_some()).collect();
        for (found, _, read) in document.reads.iter().filter(|(_, level, _)| *level == Level::Final) {
            finding.checked += 1;
            let lost = acknowledged.iter().find(|(_, put)| {
                let is_explained = |(version, write): &(_, &Operation)| version == found && !write.is_before(put);
                put.is_before(read) && !document.writes.iter().any(is_explained)
            });
            if let Some((version, put)) = lost {
                finding.breaches.push(format!(
                    "document {key}: version {} acknowledged at {} us, {} found at the end",
                    version.unwrap_or_default(),
                    put.answered_us,
                    found.map_or_else(|| "nothing".to_owned(), |found| format!("version {found}")),
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
    fn what_the_last_writes_explain_is_no_loss() {
        let histories = [
            vec![put(1, 10, 0, 5), at_last(1, Some(10))],
            vec![put(1, 10, 0, 5), put(1, 11, 6, 9), at_last(1, Some(11))],
            // Two at once: either may be the last.
            vec![put(1, 10, 0, 9), put(1, 11, 5, 7), at_last(1, Some(10))],
            // An unknown one may take effect at any time.
            vec![unknown(put(1, 10, 0, 5)), put(1, 11, 6, 9), at_last(1, Some(10))],
            vec![put(1, 10, 0, 5), unknown(delete(1, 6, 9)), at_last(1, None)],
            vec![put(1, 10, 0, 5), delete(1, 6, 9), at_last(1, None)],
            vec![unknown(put(1, 10, 0, 5)), at_last(1, None)],
        ];
        for history in histories {
            let finding = check(&history);
            assert!(finding.is_kept(), "{finding}");
        }
    }

    #[test]
    fn what_they_do_not_is_one() {
        let histories = [
            vec![put(1, 10, 0, 5), at_last(1, None)],
            vec![put(1, 10, 0, 5), put(1, 11, 6, 9), at_last(1, Some(10))],
            vec![delete(1, 0, 2), put(1, 10, 3, 5), at_last(1, None)],
            vec![put(1, 10, 0, 5), failed(delete(1, 6, 9)), at_last(1, None)],
        ];
        for history in histories {
            assert_eq!(check(&history).breaches.len(), 1, "{history:?}");
        }
    }
}
