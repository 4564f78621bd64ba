//! A session sees its own writes, and never less than it has seen: read-your-writes and monotonic reads.

use std::collections::BTreeMap;

use super::{Finding, by_document, told};
use crate::history::{Action, Key, Level, Operation, Outcome, Version};

/// Checks each session read against what its process wrote and read before, and the positions of the answers against the tokens sent.
pub fn check(history: &[Operation]) -> Finding {
    let mut finding =
        Finding { promise: "a session sees its writes and never goes back", checked: 0, breaches: Vec::new() };
    let documents = by_document(history);
    let mut in_order: Vec<&Operation> = history.iter().filter(|operation| operation.outcome == Outcome::Ok).collect();
    in_order.sort_by_key(|operation| operation.answered_us);
    let mut known: BTreeMap<(u64, Key), Vec<&Operation>> = BTreeMap::new();
    for operation in in_order {
        match &operation.action {
            Action::Write { key, .. } => known.entry((operation.process, *key)).or_default().push(operation),
            Action::Read { key, found, level: Level::Session } => {
                finding.checked += 1;
                let Some(document) = documents.get(key) else { continue };
                let known = known.entry((operation.process, *key)).or_default();
                if let Some(newer) = known.iter().find(|newer| !document.may_be_after(*found, newer)) {
                    finding.breaches.push(format!(
                        "process {}, document {key}: read at {} us found {}, after {}",
                        operation.process,
                        operation.called_us,
                        shown(*found),
                        told(newer),
                    ));
                }
                known.extend(found.and_then(|version| document.put_of(version)));
            }
            Action::Positions { sent, answered } => {
                for (shard, _, seqno) in sent {
                    let stood = answered.iter().find(|(answered, _)| answered == shard).map(|(_, applied)| *applied);
                    let Some(stood) = stood else { continue };
                    finding.checked += 1;
                    if stood < *seqno {
                        finding.breaches.push(format!(
                            "process {}: shard {shard} answered at {stood} to a token at {seqno}",
                            operation.process
                        ));
                    }
                }
            }
            Action::Read { .. } => {}
        }
    }
    finding
}

fn shown(version: Option<Version>) -> String {
    version.map_or_else(|| "nothing".to_owned(), |version| format!("version {version}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::by_hand::*;

    fn session(key: Key, found: Option<Version>, at_us: u64) -> Operation {
        read(Level::Session, key, found, at_us, at_us + 1)
    }

    fn by(process: u64, mut operation: Operation) -> Operation {
        operation.process = process;
        operation
    }

    #[test]
    fn own_writes_and_later_ones_of_others_may_be_seen() {
        let histories = [
            vec![put(1, 10, 0, 5), session(1, Some(10), 6)],
            vec![put(1, 10, 0, 5), by(2, put(1, 11, 4, 9)), session(1, Some(11), 6), session(1, Some(11), 20)],
            vec![put(1, 10, 0, 5), delete(1, 6, 7), session(1, None, 8)],
            // Another session may be behind.
            vec![put(1, 10, 0, 5), put(1, 11, 6, 7), by(2, session(1, Some(10), 8))],
            // A write without an answer may come at any time.
            vec![unknown(put(1, 10, 0, 5)), put(1, 11, 6, 7), session(1, Some(10), 8)],
            vec![session(1, None, 0), put(1, 10, 2, 5), session(1, Some(10), 6), positions((0, 7), 7)],
        ];
        for history in histories {
            let finding = check(&history);
            assert!(finding.is_kept(), "{finding}");
        }
    }

    #[test]
    fn what_the_session_knows_may_not_vanish() {
        let histories = [
            vec![put(1, 10, 0, 5), session(1, None, 6)],
            vec![put(1, 10, 0, 5), put(1, 11, 6, 7), session(1, Some(10), 8)],
            vec![put(1, 10, 0, 5), delete(1, 6, 7), session(1, Some(10), 8)],
            // Seen once, it stays seen.
            vec![by(2, put(1, 10, 0, 5)), by(2, put(1, 11, 6, 7)), session(1, Some(11), 8), session(1, Some(10), 10)],
            vec![put(1, 10, 0, 5), session(1, Some(10), 6), positions((0, 7), 6)],
        ];
        for history in histories {
            assert_eq!(check(&history).breaches.len(), 1, "{history:?}");
        }
    }
}
