//! Each of these broken rules is found by the seeded walks, and the rules as they are survive the same walks. Three more, which walks
//! meet too seldom, are found by `search`.
//!
//! `SEED=n` takes one walk and tells its steps; `WALKS=n` takes more. With a mutant the core's own `check` is left out, so that it is
//! the oracles alone that find it.

use std::collections::BTreeMap;

use super::number;
use super::sights::SIGHTS;
use super::starts::as_asked;
use super::walk::{Rng, Walk, walk, walk_from};
use crate::replication::mutant::Mutant;

/// Every mutant must be found within as many walks as the unbroken rules survive.
const WALKS: u64 = 60_000;

fn story(seed: u64, walk: &Walk) -> String {
    let steps: Vec<String> = walk.steps.iter().map(|step| format!("{step:?}")).collect();
    format!("walk {seed}: {:?}\n{}", walk.broken, steps.join("\n"))
}

#[test]
fn the_rules_as_they_are_survive() {
    let mut counts = BTreeMap::new();
    if let Some(seed) = number("SEED") {
        return println!("{}", story(seed, &walk(seed, None, &mut counts)));
    }
    let mut sights = [0u64; SIGHTS.len()];
    let (mut steps, mut entries, mut acknowledgements, mut terms) = (0, 0, 0, 0);
    let walks = number("WALKS").unwrap_or(WALKS);
    for seed in 0..walks {
        let walk = walk(seed, None, &mut counts);
        assert!(walk.broken.is_none(), "{}", story(seed, &walk));
        steps += walk.steps.len();
        entries += walk.entries;
        acknowledgements += walk.acknowledgements;
        terms += walk.terms;
        sights.iter_mut().zip(walk.sights).for_each(|(count, seen)| *count += u64::from(seen));
    }
    println!(
        "{walks} walks, {steps} steps: {entries} entries committed in {terms} terms, {acknowledgements} writes acknowledged\n\
         {counts:?}"
    );
    for ((sight, _), seen) in SIGHTS.iter().zip(sights) {
        println!("in {seen} walks {sight}");
        assert!(seen > walks / 1000, "too few walks in which {sight}: {seen}");
    }
}

/// The bounds that the model is to cover at least are too wide for a search to the end, so they are walked, many times over. Each of its
/// events is met beside three changes of the primary; all of them in one walk are not.
#[test]
fn the_bounds_asked_for_are_walked() {
    let mut counts = BTreeMap::new();
    let sight = |begin: &str| SIGHTS.iter().position(|(sight, _)| sight.starts_with(begin)).expect("a sight");
    let thrice = sight("the role passes");
    let all = ["a write is lost with", "a copy goes on from", "a hand-off is done", "both writes are"].map(sight);
    let (mut met_all, mut passed_thrice, mut beside) = (0, 0, [0; 4]);
    let walks = number("WALKS").unwrap_or(WALKS / 3);
    for seed in 0..walks {
        let walk = walk_from(as_asked, Rng::new(seed), None, &mut counts);
        assert!(walk.broken.is_none(), "{}", story(seed, &walk));
        if walk.sights[thrice] {
            let met = all.map(|sight| walk.sights[sight]);
            passed_thrice += 1;
            met_all += u64::from(met.iter().all(|met| *met));
            beside.iter_mut().zip(met).for_each(|(count, met)| *count += u64::from(met));
        }
    }
    println!("{walks} walks, {passed_thrice} in which the role passes three times; {met_all} of them met all there is");
    for (sight, seen) in all.iter().zip(beside) {
        println!("in {seen} of them {}", SIGHTS[*sight].0);
    }
    assert!(passed_thrice > walks / 20 && beside.iter().all(|seen| *seen > 0));
}

/// One test per broken rule.
macro_rules! found {
    ($($name:ident: $mutant:ident,)*) => {
        $(
            #[test]
            fn $name() {
                found(Mutant::$mutant);
            }
        )*
    };
}

found! {
    m1_truncate_on_new_term: TruncateOnNewTerm,
    m2_resume_after_restart: ResumeAfterRestart,
    m2_resume_after_reopening: ResumeAfterReopening,
    m3_add_untracked: AddUntracked,
    m4_leave_before_consent: LeaveBeforeConsent,
    m5_uncapped_checkpoint: UncappedCheckpoint,
    m6_promote_outside_in_sync: PromoteOutsideInSync,
    m7_untrack_with_add_in_flight: UntrackWithAddInFlight,
    m8_majority_ack: MajorityAck,
    m9_apply_uncommitted: ApplyUncommitted,
    m12_read_before_barrier: ReadBeforeBarrier,
    ack_before_fsync: AckBeforeFsync,
    answer_before_durable: AnswerBeforeDurable,
    own_disk_not_counted: OwnDiskNotCounted,
    send_before_grant_durable: SendBeforeGrantDurable,
    count_earlier_answers: CountEarlierAnswers,
    retry_appended_again: RetryAppendedAgain,
    applied_window_not_searched: AppliedWindowNotSearched,
    unapplied_tail_not_loaded: UnappliedTailNotLoaded,
    no_prev_check: NoPrevCheck,
    keep_conflicting_tail: KeepConflictingTail,
    old_registers_learned: OldRegistersLearned,
    old_terms_accepted: OldTermsAccepted,
    durable_not_lowered: DurableNotLowered,
}

fn found(mutant: Mutant) {
    let mut counts = BTreeMap::new();
    let mut steps = 0;
    for seed in 0..number("WALKS").unwrap_or(WALKS) {
        let walk = walk(seed, Some(mutant), &mut counts);
        steps += walk.steps.len();
        if let Some(broken) = &walk.broken {
            if number("SEED").is_some() {
                println!("{}", story(seed, &walk));
            }
            return println!("{mutant:?}: walk {seed}, step {} ({steps} in all): {broken}", walk.steps.len());
        }
    }
    panic!("{mutant:?} was not found in {steps} steps");
}
