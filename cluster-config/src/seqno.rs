//! Positions in a shard's log and their order.
//!
//! `applied <= global checkpoint <= every ack-set member's local checkpoint <= its last seqno`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Grows by one at each grant of the primary role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PrimaryTerm(pub u64);

/// Position in one shard's log: from 1, without gaps. 0 is "before the first entry".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SeqNo(pub u64);

impl PrimaryTerm {
    /// The term after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl SeqNo {
    /// Before the first entry.
    pub const ZERO: SeqNo = SeqNo(0);

    /// The position after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for PrimaryTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SeqNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a log ends: compared by term first, so that of two tails the one written under the later primary is the longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogPosition {
    /// Term of the entry at `seqno`.
    pub term: PrimaryTerm,
    /// Position of the entry.
    pub seqno: SeqNo,
}
