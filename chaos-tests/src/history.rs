//! What the workloads did and saw: an append-only list of operations with the instants of call and answer. Checkers read only this.
//!
//! Promises: an operation is recorded once, after its end; `Unknown` is for ever: the write may take effect at any time after
//! its call, or never. Times are microseconds since the history began, from one monotonic clock.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use serde::Serialize;

/// A document's number; its id and its vector follow from it.
pub type Key = u64;
/// Names one put; never used twice.
pub type Version = u64;

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Acknowledged, or answered.
    Ok,
    /// Refused before anything happened.
    Failed,
    /// An error or no answer.
    Unknown,
}

/// What a read promised to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Possibly a little old: what a user gets who asks for nothing else.
    Eventual,
    /// The same by the document's key and not its vector alone, and at most [`MAX_STALENESS`](crate::workload::documents::MAX_STALENESS) old.
    Bounded,
    /// At or after the token sent.
    Session,
    /// Everything acknowledged before the call.
    Strong,
    /// As strong, after all faults are healed and all copies agree.
    Final,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A put of a version, or a delete.
    Write {
        /// Which document.
        key: Key,
        /// `None` deletes.
        version: Option<Version>,
    },
    /// A search for the document's own vector.
    Read {
        /// Which document.
        key: Key,
        /// The version found, `None` where the document was not.
        found: Option<Version>,
        /// What was asked for.
        level: Level,
    },
    /// A session read's positions: what its token asked for and where the copies that answered stood.
    Positions {
        /// By shard: lineage and seqno sent.
        sent: Vec<(String, u64, u64)>,
        /// By shard: applied seqno of the answer.
        answered: Vec<(String, u64)>,
    },
}

/// An operation that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Operation {
    /// Who did it; one after another.
    pub process: u64,
    /// What was done.
    pub action: Action,
    /// When it was called.
    pub called_us: u64,
    /// When the answer came, or was given up.
    pub answered_us: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it did not end well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Operation {
    /// When it had taken effect at the latest; `None` where that is unknown.
    pub fn done_us(&self) -> Option<u64> {
        (self.outcome == Outcome::Ok).then_some(self.answered_us)
    }

    /// Whether it was over before the other began, so that the order of the two is certain.
    pub fn is_before(&self, other: &Operation) -> bool {
        self.done_us().is_some_and(|done| done < other.called_us)
    }
}

/// The list, shared by all workers.
pub struct History {
    began: Instant,
    operations: Mutex<Vec<Operation>>,
    copy: Option<Mutex<BufWriter<File>>>,
}

impl History {
    /// An empty list; each operation is also written to `path` as a line of JSON, if given.
    pub fn new(path: Option<&Path>) -> anyhow::Result<Self> {
        let copy = path.map(File::create).transpose()?.map(|file| Mutex::new(BufWriter::new(file)));
        Ok(Self { began: Instant::now(), operations: Mutex::default(), copy })
    }

    /// Now.
    pub fn now_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// Appends.
    pub fn record(&self, operation: Operation) {
        if let Some(copy) = &self.copy {
            let line = serde_json::to_string(&operation).expect("an operation is plain data");
            // The file is for people; the checkers read memory.
            let _ = writeln!(copy.lock().expect("no panic while held"), "{line}");
        }
        self.operations.lock().expect("no panic while held").push(operation);
    }

    /// Everything so far, in the order it was recorded.
    pub fn snapshot(&self) -> Vec<Operation> {
        self.operations.lock().expect("no panic while held").clone()
    }
}

/// Histories written by hand, for the checkers' tests.
#[cfg(test)]
pub(crate) mod by_hand {
    use super::*;

    fn operation(action: Action, called_us: u64, answered_us: u64, outcome: Outcome) -> Operation {
        Operation { process: 1, action, called_us, answered_us, outcome, error: None }
    }

    /// An acknowledged put.
    pub(crate) fn put(key: Key, version: Version, called_us: u64, answered_us: u64) -> Operation {
        operation(Action::Write { key, version: Some(version) }, called_us, answered_us, Outcome::Ok)
    }

    /// An acknowledged delete.
    pub(crate) fn delete(key: Key, called_us: u64, answered_us: u64) -> Operation {
        operation(Action::Write { key, version: None }, called_us, answered_us, Outcome::Ok)
    }

    /// The same without an answer.
    pub(crate) fn unknown(mut write: Operation) -> Operation {
        write.outcome = Outcome::Unknown;
        write
    }

    /// The same, refused.
    pub(crate) fn failed(mut write: Operation) -> Operation {
        write.outcome = Outcome::Failed;
        write
    }

    /// A read.
    pub(crate) fn read(level: Level, key: Key, found: Option<Version>, called_us: u64, answered_us: u64) -> Operation {
        operation(Action::Read { key, found, level }, called_us, answered_us, Outcome::Ok)
    }

    /// A final read.
    pub(crate) fn at_last(key: Key, found: Option<Version>) -> Operation {
        read(Level::Final, key, found, 1_000_000, 1_000_001)
    }

    /// A session read's positions.
    pub(crate) fn positions(sent: (u64, u64), answered: u64) -> Operation {
        let action =
            Action::Positions { sent: vec![("1/0".into(), sent.0, sent.1)], answered: vec![("1/0".into(), answered)] };
        operation(action, 0, 1, Outcome::Ok)
    }
}
