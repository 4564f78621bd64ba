//! Seeded random walks through the model: deeper than breadth-first search reaches, with the weights of what happens drawn anew for
//! each walk ("swarm"), so that each kind of fault is sometimes rare and sometimes all there is.

use std::collections::BTreeMap;

use super::sights::SIGHTS;
use super::starts::{STARTS, Start};
use super::world::{Mail, Setting, Step, World};
use crate::replication::mutant::Mutant;

/// SplitMix64: a seed gives the same walk on every machine.
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed ^ 0x5175_7369_2d77_616c)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0..bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

const STEPS_MAX: usize = 200;

/// Kinds of steps: one of them is drawn first, so that the many of one kind do not crowd out the few of another.
const KINDS: [&str; 20] = [
    "learn",
    "sync",
    "apply",
    "look up",
    "append",
    "reply",
    "proposal",
    "repeat",
    "loss",
    "write",
    "tick",
    "crash",
    "disk failure",
    "reopening",
    "grant",
    "expiry",
    "read",
    "confirm",
    "hand-off",
    "snapshot",
];

/// What a walk came to.
pub(super) struct Walk {
    /// What happened, up to the step after which something was broken.
    pub(super) steps: Vec<Step>,
    /// What was broken.
    pub(super) broken: Option<String>,
    pub(super) entries: usize,
    pub(super) acknowledgements: usize,
    pub(super) terms: u64,
    /// Which of the sights were met.
    pub(super) sights: [bool; SIGHTS.len()],
}

/// One walk, decided by its seed alone.
pub(super) fn walk(seed: u64, mutant: Option<Mutant>, counts: &mut BTreeMap<&'static str, u64>) -> Walk {
    let mut rng = Rng::new(seed);
    let start = STARTS[rng.below(STARTS.len() as u64) as usize];
    walk_from(start, rng, mutant, counts)
}

/// One walk from a start of one kind.
pub(super) fn walk_from(
    start: fn(&mut Rng) -> Start,
    mut rng: Rng,
    mutant: Option<Mutant>,
    counts: &mut BTreeMap<&'static str, u64>,
) -> Walk {
    let Start { setting, bounds, begin } = start(&mut rng);
    let weights: [u64; KINDS.len()] = std::array::from_fn(|_| [1, 4, 16][rng.below(3) as usize]);
    let mut world = World::new(Setting { mutant, ..setting }, bounds);
    let mut steps = begin(&mut world);
    let mut possible = Vec::new();
    let mut sights = [false; SIGHTS.len()];
    while steps.len() < STEPS_MAX && world.oracle.broken().is_none() {
        possible.clear();
        world.steps(&mut possible);
        let Some(step) = choose(&mut rng, &world, &weights, &possible) else { break };
        *counts.entry(KINDS[kind(&world, step)]).or_default() += 1;
        steps.push(step);
        world.take(step);
        if mutant.is_none() {
            sights.iter_mut().zip(SIGHTS).for_each(|(met, (_, shows))| *met = *met || shows(&world));
        }
    }
    Walk {
        steps,
        broken: world.oracle.broken().map(str::to_owned),
        entries: world.oracle.externalised.len(),
        acknowledgements: world.oracle.acknowledgements(),
        terms: world.group().primary_term.0,
        sights,
    }
}

fn choose(rng: &mut Rng, world: &World, weights: &[u64; KINDS.len()], possible: &[Step]) -> Option<Step> {
    let mut of_kind = [0u64; KINDS.len()];
    for step in possible {
        of_kind[kind(world, *step)] += 1;
    }
    let weight = |kind: usize| if of_kind[kind] == 0 { 0 } else { weights[kind] };
    let mut at = rng.below((0..KINDS.len()).map(weight).sum());
    let chosen = (0..KINDS.len()).find(|kind| {
        let found = at < weight(*kind);
        at = at.saturating_sub(weight(*kind));
        found
    })?;
    let which = rng.below(of_kind[chosen]) as usize;
    possible.iter().filter(|step| kind(world, **step) == chosen).nth(which).copied()
}

fn kind(world: &World, step: Step) -> usize {
    match step {
        Step::Learn { .. } => 0,
        Step::Sync { .. } => 1,
        Step::Apply { .. } => 2,
        Step::LookUp { .. } => 3,
        Step::Deliver { keep: true, .. } => 7,
        Step::Deliver { mail, .. } => match world.mail[mail] {
            Mail::Append { .. } => 4,
            Mail::Reply { .. } => 5,
            Mail::Propose { .. } | Mail::Decision { .. } | Mail::Register { .. } => 6,
            Mail::Confirm { .. } | Mail::Confirmed { .. } => 17,
        },
        Step::Lose { .. } | Step::GiveUp { .. } => 8,
        Step::Write { .. } => 9,
        Step::Tick { .. } => 10,
        Step::Crash { .. } => 11,
        Step::FailDisk { .. } => 12,
        Step::Reopen { .. } => 13,
        Step::Grant { .. } => 14,
        Step::Expire { .. } => 15,
        Step::Read { .. } => 16,
        Step::HandOff { .. } => 18,
        Step::Fetch { .. } => 19,
    }
}
