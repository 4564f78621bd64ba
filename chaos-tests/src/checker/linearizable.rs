//! Strong reads are linearizable, document by document: there is one order of all writes and strong reads that agrees with the
//! clock wherever two did not overlap, in which each read finds what the write before it left.
//!
//! The search of Wing and Gong with Lowe's memory of configurations already seen. An unknown write may stand anywhere after its
//! call or nowhere; one whose version no read found is left out, because it can always stand at the end. `stateright`'s tester was
//! considered: it remembers nothing of what it has tried, and unknown writes, which chaos makes in plenty, stay in flight in it
//! for ever.

use std::collections::HashSet;

use super::{Document, Finding, by_document};
use crate::history::{Level, Operation, Version};

/// Configurations looked at before a document is given up as undecided, which counts as a breach.
const CONFIGURATIONS_MAX: usize = 2_000_000;

/// Checks every document that was read at level strong or final.
pub fn check(history: &[Operation]) -> Finding {
    let mut finding = Finding { promise: "strong reads are linearizable", checked: 0, breaches: Vec::new() };
    for (key, document) in by_document(history) {
        let steps = steps(&document);
        let reads = steps.iter().filter(|step| !step.is_write).count() as u64;
        if document.reads.iter().all(|(_, level, _)| *level != Level::Strong) {
            continue;
        }
        finding.checked += reads;
        match search(&steps) {
            Verdict::Ordered => {}
            Verdict::Impossible(longest) => finding.breaches.push(format!(
                "document {key}: no order explains its {} operations; the best one ends before {}",
                steps.len(),
                told(&steps, &longest),
            )),
            Verdict::Undecided => finding.breaches.push(format!(
                "document {key}: undecided after {CONFIGURATIONS_MAX} configurations of {} operations",
                steps.len()
            )),
        }
    }
    finding
}

/// A write or read as the search sees it.
#[derive(Clone, Debug)]
struct Step {
    is_write: bool,
    /// Written or found.
    value: Option<Version>,
    called_us: u64,
    /// `u64::MAX`: perhaps never.
    done_us: u64,
}

fn steps(document: &Document<'_>) -> Vec<Step> {
    let reads = document.reads.iter().filter(|(_, level, _)| matches!(level, Level::Strong | Level::Final));
    let mut steps: Vec<Step> = reads
        .map(|(found, _, read)| Step {
            is_write: false,
            value: *found,
            called_us: read.called_us,
            done_us: read.answered_us,
        })
        .collect();
    let found: HashSet<Option<Version>> = steps.iter().map(|step| step.value).collect();
    let writes = document.writes.iter().map(|(version, write)| Step {
        is_write: true,
        value: *version,
        called_us: write.called_us,
        done_us: write.done_us().unwrap_or(u64::MAX),
    });
    steps.extend(writes.filter(|write| write.done_us != u64::MAX || found.contains(&write.value)));
    steps.sort_by_key(|step| (step.called_us, step.done_us));
    steps
}

enum Verdict {
    Ordered,
    /// With the longest order found.
    Impossible(Vec<usize>),
    Undecided,
}

/// Which steps have been put in order, and what the register holds then.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Configuration {
    placed: Vec<u64>,
    value: Option<Version>,
}

impl Configuration {
    fn holds(&self, step: usize) -> bool {
        self.placed[step / 64] & (1 << (step % 64)) != 0
    }

    fn with(&self, step: usize, value: Option<Version>) -> Self {
        let mut next = self.clone();
        next.placed[step / 64] |= 1 << (step % 64);
        next.value = value;
        next
    }
}

/// Depth first over configurations, each visited once.
fn search(steps: &[Step]) -> Verdict {
    let start = Configuration { placed: vec![0; steps.len().div_ceil(64)], value: None };
    let mut seen = HashSet::from([start.clone()]);
    let mut order: Vec<usize> = Vec::new();
    let mut longest: Vec<usize> = Vec::new();
    let mut stack = vec![(start.clone(), candidates(steps, &start))];
    while let Some((configuration, next)) = stack.last_mut() {
        let Some(step) = next.pop() else {
            stack.pop();
            order.pop();
            continue;
        };
        let value = if steps[step].is_write { steps[step].value } else { configuration.value };
        let reached = configuration.with(step, value);
        if !seen.insert(reached.clone()) {
            continue;
        }
        if seen.len() > CONFIGURATIONS_MAX {
            return Verdict::Undecided;
        }
        order.push(step);
        if order.len() > longest.len() {
            longest.clone_from(&order);
        }
        if (0..steps.len()).all(|step| reached.holds(step) || steps[step].done_us == u64::MAX) {
            return Verdict::Ordered;
        }
        let further = candidates(steps, &reached);
        stack.push((reached, further));
    }
    if steps.iter().all(|step| step.done_us == u64::MAX) { Verdict::Ordered } else { Verdict::Impossible(longest) }
}

/// The steps that may come next: called before every step not yet placed was done, and, for a read, finding what is there. The one
/// done first comes last, to be taken first.
fn candidates(steps: &[Step], configuration: &Configuration) -> Vec<usize> {
    let open = || (0..steps.len()).filter(|step| !configuration.holds(*step));
    let first_done = open().map(|step| steps[step].done_us).min().unwrap_or(u64::MAX);
    let mut next: Vec<usize> = open()
        .take_while(|step| steps[*step].called_us <= first_done)
        .filter(|step| steps[*step].is_write || steps[*step].value == configuration.value)
        .collect();
    next.sort_by_key(|step| std::cmp::Reverse(steps[*step].done_us));
    next
}

/// The step that no order could place, for people: the one done first of those missing.
fn told(steps: &[Step], placed: &[usize]) -> String {
    let missing = (0..steps.len()).filter(|step| !placed.contains(step)).min_by_key(|step| steps[*step].done_us);
    missing.map_or_else(String::new, |step| {
        let Step { is_write, value, called_us, done_us } = &steps[step];
        let what = if *is_write { "a write of" } else { "a read that found" };
        let value = value.map_or_else(|| "nothing".to_owned(), |version| format!("version {version}"));
        format!("{what} {value}, {called_us} to {done_us} us")
    })
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::seq::SliceRandom;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::history::by_hand::*;

    fn strong(found: Option<Version>, called_us: u64, answered_us: u64) -> Operation {
        read(Level::Strong, 1, found, called_us, answered_us)
    }

    #[test]
    fn overlapping_operations_may_take_either_order() {
        let histories = [
            vec![strong(None, 0, 1), put(1, 10, 2, 5), strong(Some(10), 6, 7)],
            vec![put(1, 10, 0, 9), strong(None, 1, 2), strong(Some(10), 3, 4)],
            vec![put(1, 10, 0, 9), put(1, 11, 1, 8), strong(Some(10), 10, 11)],
            vec![put(1, 10, 0, 5), delete(1, 6, 9), strong(Some(10), 7, 8), strong(None, 10, 11)],
            // An unknown write: late, or never.
            vec![unknown(put(1, 10, 0, 1)), strong(None, 2, 3), strong(Some(10), 4, 5)],
            vec![unknown(put(1, 10, 0, 1)), put(1, 11, 2, 3), strong(Some(11), 4, 5), at_last(1, Some(10))],
            vec![put(1, 10, 0, 1), unknown(delete(1, 2, 3)), strong(Some(10), 4, 5), strong(None, 6, 7)],
        ];
        for history in histories {
            let finding = check(&history);
            assert!(finding.is_kept(), "{history:?}\n{finding}");
        }
    }

    #[test]
    fn no_order_explains_these() {
        let histories = [
            // A stale read.
            vec![put(1, 10, 0, 1), put(1, 11, 2, 3), strong(Some(10), 4, 5)],
            vec![put(1, 10, 0, 1), strong(None, 2, 3)],
            // New, then old again.
            vec![put(1, 10, 0, 1), put(1, 11, 2, 9), strong(Some(11), 3, 4), strong(Some(10), 5, 6)],
            // Found after its delete, and after that again.
            vec![put(1, 10, 0, 1), delete(1, 2, 3), strong(None, 4, 5), strong(Some(10), 6, 7)],
            // Two readers that disagree on the order of two writes.
            vec![
                put(1, 10, 0, 9),
                put(1, 11, 0, 9),
                strong(Some(10), 10, 11),
                strong(Some(11), 12, 13),
                strong(Some(10), 14, 15),
            ],
            // An unknown write takes effect once.
            vec![
                unknown(put(1, 10, 0, 1)),
                put(1, 11, 2, 3),
                strong(Some(10), 4, 5),
                strong(Some(11), 6, 7),
                strong(Some(10), 8, 9),
            ],
        ];
        for history in histories {
            assert_eq!(check(&history).breaches.len(), 1, "{history:?}");
        }
    }

    /// Histories of a real register: each operation takes effect at one instant within its span. With `stale` one read finds what
    /// was there before the last write that was over.
    fn simulated(seed: u64, stale: bool) -> Vec<Operation> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut effects: Vec<u64> = (1..=300).map(|position| position * 10).collect();
        effects.truncate(random.random_range(50..200));
        let (mut value, mut version) = (None, 0);
        let mut history = Vec::new();
        for at in effects {
            let (called, answered) = (at - random.random_range(0..40).min(at), at + random.random_range(0..40));
            let write = match random.random_range(0..10) {
                0 => Some((None, delete(1, called, answered))),
                1..4 => {
                    version += 1;
                    Some((Some(version), put(1, version, called, answered)))
                }
                _ => None,
            };
            match write {
                Some((_, write)) if random.random_bool(0.2) && write.action != delete(1, 0, 0).action => {
                    // No answer, and no effect either.
                    history.push(unknown(write));
                }
                Some((left, write)) => {
                    value = left;
                    history.push(if random.random_bool(0.1) { unknown(write) } else { write });
                }
                None => history.push(strong(value, called, answered)),
            }
        }
        if stale {
            version += 2;
            history.extend([put(1, version - 1, 9_000, 9_001), put(1, version, 9_002, 9_003)]);
            history.push(strong(Some(version - 1), 9_004, 9_005));
        }
        history.shuffle(&mut random);
        history
    }

    #[test]
    fn long_histories_of_a_register_are_accepted_and_one_stale_read_is_found() {
        for seed in 0..15 {
            let finding = check(&simulated(seed, false));
            assert!(finding.is_kept(), "seed {seed}: {finding}");
            assert_eq!(check(&simulated(seed, true)).breaches.len(), 1, "seed {seed}");
        }
    }
}
