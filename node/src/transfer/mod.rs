//! Whole copies from node to node, when the log cannot help: a checkpoint at the source, pulled piece by piece by the target.
//!
//! | file | keeps this promise |
//! |---|---|
//! | `manifest` | what a snapshot consists of; nothing that a sender names leads out of its directory |
//! | `source` | a checkpoint stays as it is while it is read, and goes when nobody reads it |
//! | `incoming` | what has arrived and is right is kept over restarts of either side |
//! | `fetch` | one attempt: open, pull what is missing, check, make it this copy's own |
//! | `decide` | which copies are fetched, from where, and when again; never one that is in sync |
//!
//! The target does everything, so a source that dies leaves nothing behind but hard links, which it deletes when it starts. What
//! becomes of the old files of the copy is decided by one exchange of two directories ([`incoming::Incoming::install`]).

pub mod decide;
pub mod fetch;
pub mod incoming;
pub mod manifest;
pub mod source;

pub use decide::{Attempts, decide_fetch};
pub use fetch::{Fetch, Progress, SnapshotSource};
pub use incoming::Incoming;
pub use manifest::{Manifest, SnapshotFile, SnapshotId};
pub use source::Snapshots;
