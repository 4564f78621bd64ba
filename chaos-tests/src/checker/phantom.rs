//! Nothing is ever found that was not written: no version that was never sent, was refused, or was sent only later.

use super::{Finding, by_document};
use crate::history::Operation;

/// Checks every answered read, at whatever level.
pub fn check(history: &[Operation]) -> Finding {
    let mut finding = Finding { promise: "nothing is found that was not written", checked: 0, breaches: Vec::new() };
    for (key, document) in by_document(history) {
        for (found, level, read) in &document.reads {
            finding.checked += 1;
            let Some(version) = *found else { continue };
            let problem = match document.put_of(version) {
                None => "which nobody wrote, or whose put was refused",
                Some(put) if read.answered_us < put.called_us => "which was written only later",
                Some(_) => continue,
            };
            let at = read.answered_us;
            finding
                .breaches
                .push(format!("document {key}: {level:?} read at {at} us found version {version}, {problem}"));
        }
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Level;
    use crate::history::by_hand::*;

    #[test]
    fn acknowledged_and_unknown_versions_may_be_seen() {
        let history = [
            put(1, 10, 0, 5),
            unknown(put(1, 11, 6, 9)),
            read(Level::Eventual, 1, Some(10), 1, 2),
            read(Level::Session, 1, Some(11), 20, 21),
            at_last(1, None),
        ];
        assert!(check(&history).is_kept());
    }

    #[test]
    fn invented_refused_and_future_ones_may_not() {
        let histories = [
            vec![put(1, 10, 0, 5), at_last(1, Some(12))],
            vec![put(1, 10, 0, 5), at_last(2, Some(10))],
            vec![failed(put(1, 10, 0, 5)), at_last(1, Some(10))],
            vec![read(Level::Eventual, 1, Some(10), 1, 2), put(1, 10, 3, 5)],
        ];
        for history in histories {
            assert_eq!(check(&history).breaches.len(), 1, "{history:?}");
        }
    }
}
