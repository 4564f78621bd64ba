//! Rules of the protocol that tests can break, one at a time, to show that the proofs notice.
//!
//! The model breaks any of them on its own thread. In the program, which whole processes and the simulations are made of, the few in
//! [`PLANTABLE`] can be broken for the life of the process, by [`break_rule`]: at start, if a node's test hooks say so, and never after.

use std::sync::atomic::{AtomicU8, Ordering};

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

/// What a process can be told to break: the bugs that tests from outside of this crate plant.
const PLANTABLE: [Mutant; 4] =
    [Mutant::AckBeforeFsync, Mutant::AnswerBeforeDurable, Mutant::ResumeAfterRestart, Mutant::ApplyUncommitted];

/// The rule that this process breaks, as one more than its place in [`PLANTABLE`]; zero for none.
static BROKEN: AtomicU8 = AtomicU8::new(0);

/// Breaks a rule in this process from now on, in every copy: to be called before the first is opened. Errors: no such rule.
pub fn break_rule(name: &str) -> Result<(), String> {
    let Some(place) = PLANTABLE.iter().position(|rule| format!("{rule:?}") == name) else {
        return Err(format!("no rule {name:?} can be broken, only one of {PLANTABLE:?}"));
    };
    BROKEN.store(place as u8 + 1, Ordering::Relaxed);
    tracing::warn!(rule = name, "a rule of the protocol is broken on purpose");
    Ok(())
}

/// Whether this rule is to be broken now.
#[cfg(not(test))]
pub(super) fn breaks(rule: Mutant) -> bool {
    match BROKEN.load(Ordering::Relaxed) {
        0 => false,
        broken => PLANTABLE[broken as usize - 1] == rule,
    }
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
