//! One promise per file. Most are pure functions of the history; `acknowledged`, `copies_agree` and `ledger` read the cluster from outside.

pub mod acknowledged;
pub mod collections;
pub mod copies_agree;
pub mod found;
pub mod fresh;
pub mod invariants;
pub mod ledger;
pub mod linearizable;
pub mod lost;
pub mod metadata;
pub mod phantom;
pub mod primaries;
pub mod resurrected;
pub mod sessions;

use std::collections::BTreeMap;
use std::fmt;

use crate::history::{Action, Key, Level, Operation, Outcome, Version};

/// Violations told in full; further ones are only counted.
const SHOWN_MAX: usize = 5;

/// What a checker found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The promise.
    pub promise: &'static str,
    /// Things it was held against.
    pub checked: u64,
    /// Each breach, in words.
    pub breaches: Vec<String>,
}

impl Finding {
    /// Whether the promise held, and was put to the test at all.
    pub fn is_kept(&self) -> bool {
        self.breaches.is_empty() && self.checked > 0
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.breaches.is_empty(), self.checked) {
            (true, 0) => "NOT TESTED",
            (true, _) => "kept",
            (false, _) => "BROKEN",
        };
        write!(f, "{:<58} {verdict:<10} {:>8} checked", self.promise, self.checked)?;
        for breach in self.breaches.iter().take(SHOWN_MAX) {
            write!(f, "\n    {breach}")?;
        }
        match self.breaches.len().saturating_sub(SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, "\n    and {more} more"),
        }
    }
}

/// One document's part of a history. Refused writes are left out: nothing of them may ever be seen.
#[derive(Debug, Default)]
pub(crate) struct Document<'a> {
    /// Writes that were acknowledged or may have taken effect, with the version written.
    pub(crate) writes: Vec<(Option<Version>, &'a Operation)>,
    /// Answered reads, with the version found.
    pub(crate) reads: Vec<(Option<Version>, Level, &'a Operation)>,
}

impl<'a> Document<'a> {
    /// The put of that version.
    pub(crate) fn put_of(&self, version: Version) -> Option<&'a Operation> {
        self.writes.iter().find(|(written, _)| *written == Some(version)).map(|(_, operation)| *operation)
    }

    /// Whether `found` can be the state at or after the write `known`: some write that left it so did not certainly come before.
    pub(crate) fn may_be_after(&self, found: Option<Version>, known: &Operation) -> bool {
        self.writes.iter().any(|(version, write)| *version == found && !write.is_before(known))
    }
}

/// A write, in words.
fn told(write: &Operation) -> String {
    match write.action {
        Action::Write { version: Some(version), .. } => format!("version {version} of {} us", write.called_us),
        _ => format!("a delete of {} us", write.called_us),
    }
}

/// The history, document by document.
pub(crate) fn by_document(history: &[Operation]) -> BTreeMap<Key, Document<'_>> {
    let mut documents: BTreeMap<Key, Document<'_>> = BTreeMap::new();
    for operation in history {
        match operation.action {
            Action::Write { key, version } if operation.outcome != Outcome::Failed => {
                documents.entry(key).or_default().writes.push((version, operation));
            }
            Action::Read { key, found, level } if operation.outcome == Outcome::Ok => {
                documents.entry(key).or_default().reads.push((found, level, operation));
            }
            _ => {}
        }
    }
    documents
}
