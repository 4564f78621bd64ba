//! Rules of the protocol that a test build can break, one at a time, to show that the proofs notice.
//!
//! Outside of tests [`breaks`] is constantly false: nothing of this reaches the program.

/// One broken rule. The numbers M1 to M13 are the reference's (3.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, allow(dead_code, reason = "the model breaks one of them in its register, not here"))]
pub(super) enum Mutant {
    /// M1: the tail is cut on hearing of a new term.
    TruncateOnNewTerm,
    /// M2: a restarted process takes up the term it was granted in its former life.
    ResumeAfterRestart,
    /// M2, in one life of the process: a reopened copy takes up its term again.
    ResumeAfterReopening,
    /// M3: a copy is proposed for the in-sync set without being in the ack set.
    AddUntracked,
    /// M4: a copy leaves the ack set when its removal is proposed, not when it is agreed.
    LeaveBeforeConsent,
    /// M5: a follower's checkpoint is not capped by the message that brought it.
    UncappedCheckpoint,
    /// M6: a copy outside of the in-sync set is granted the role. The register's duty, so broken in the model's register.
    #[cfg(test)]
    PromoteOutsideInSync,
    /// M7: a copy leaves the ack set while a proposal to add it may still come true.
    UntrackWithAddInFlight,
    /// M8: a majority of the in-sync set is enough to commit.
    MajorityAck,
    /// M9: whatever is durable is applied.
    ApplyUncommitted,
    /// M10: a copy is proposed before the primary's own barrier is committed.
    AddBeforeBarrier,
    /// M11: a strong read asks nobody.
    ReadUnconfirmed,
    /// M12: a strong read is served before the primary's own barrier is committed.
    ReadBeforeBarrier,
    /// M13: a strong read asks the in-sync set only, not the copies on their way into it.
    ReadWithoutTracked,
    /// A write counts as durable when it is handed to the disk.
    AckBeforeFsync,
    /// A follower answers before the disk does.
    AnswerBeforeDurable,
    /// The primary's own disk does not count.
    OwnDiskNotCounted,
    /// A primary that is alone in sync commits before its grant is durable.
    CommitBeforeGrantDurable,
    /// Entries go out before the grant is durable.
    SendBeforeGrantDurable,
    /// Answers to an earlier term of the same copy count.
    CountEarlierAnswers,
    /// A refusal after an unknown outcome is taken for the end of both attempts.
    RefusalResolvesAdd,
    /// A lookup asked in an earlier term counts.
    EarlierLookupCounts,
    /// A retry of an operation in flight is appended again.
    RetryAppendedAgain,
    /// The window of applied operations is not searched.
    AppliedWindowNotSearched,
    /// The operations of the unapplied tail are not known after opening.
    UnappliedTailNotLoaded,
    /// The entry before the first one sent is not compared.
    NoPrevCheck,
    /// Entries that differ from the primary's stay.
    KeepConflictingTail,
    /// Registers older than the known one are learned.
    OldRegistersLearned,
    /// Entries of an older term are taken.
    OldTermsAccepted,
    /// A cut leaves the durable position where it was.
    DurableNotLowered,
}

/// Whether this rule is to be broken now.
#[cfg(not(test))]
pub(super) const fn breaks(_: Mutant) -> bool {
    false
}

#[cfg(test)]
pub(super) use planted::{breaks, planted};

#[cfg(test)]
mod planted {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        /// The rule that is broken on this thread, while a step is under way.
        static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    pub(in crate::replication) fn breaks(mutant: Mutant) -> bool {
        PLANTED.get() == Some(mutant)
    }

    /// Runs `step` with a rule broken.
    pub(in crate::replication) fn planted<T>(mutant: Option<Mutant>, step: impl FnOnce() -> T) -> T {
        PLANTED.set(mutant);
        let result = step();
        PLANTED.set(None);
        result
    }
}
