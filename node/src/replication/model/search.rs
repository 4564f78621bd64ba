//! Breadth-first search through the model with `stateright`, within small bounds: the rules as they are survive it, and the broken ones
//! are found in it that walks meet too seldom.
//!
//! `STATES=n` lets a search go on for longer before it is cut off.

use std::fmt;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::number;
use super::sights::SIGHTS;
use super::starts::{deposed_before_the_answer, settled};
use super::world::{Bounds, NOTHING, Setting, Step, World};
use crate::replication::mutant::Mutant;

const SOUND: &str = "nothing is broken";

/// A bounded question to the model.
struct Question {
    setting: Setting,
    bounds: Bounds,
    begin: fn(&mut World) -> Vec<Step>,
}

impl Model for Question {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let mut world = World::new(self.setting, self.bounds);
        (self.begin)(&mut world);
        vec![world]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.oracle.broken().is_none() {
            world.steps(steps);
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.take(step);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![Property::<Self>::always(SOUND, |_, world| world.oracle.broken().is_none())];
        properties.extend(SIGHTS.iter().zip(SEEN).map(|((name, _), seen)| Property::sometimes(name, seen)));
        properties
    }
}

/// `stateright` takes plain functions.
type Seen = fn(&Question, &World) -> bool;

const SEEN: [Seen; SIGHTS.len()] = [
    seen::<0>, seen::<1>, seen::<2>, seen::<3>, seen::<4>, seen::<5>, seen::<6>, seen::<7>, seen::<8>, seen::<9>,
    seen::<10>, seen::<11>, seen::<12>, seen::<13>, seen::<14>, seen::<15>,
];

fn seen<const N: usize>(_: &Question, world: &World) -> bool {
    (SIGHTS[N].1)(world)
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "broken: {:?}", self.oracle.broken())?;
        writeln!(f, "{:?}", self.group())?;
        self.copies.iter().try_for_each(|replica| writeln!(f, "{:?}", replica.core))
    }
}

/// What a search came to.
struct Found {
    /// How far it went, in words.
    extent: String,
    /// Whether it saw all there is.
    is_all: bool,
    /// The sights it met, and after how many steps.
    met: Vec<(&'static str, usize)>,
    /// Something is broken, and how it came to that.
    broken: Option<(String, Vec<Step>)>,
}

fn search(question: Question) -> Found {
    let (began, states) = (Instant::now(), states_max());
    let options = question.checker().finish_when(HasDiscoveries::AnyFailures).target_state_count(states);
    let checker = options.spawn_bfs().join();
    let mut discoveries = checker.discoveries();
    let broken = discoveries.remove(SOUND).map(|path| {
        let what = path.last_state().oracle.broken().unwrap_or_default().to_owned();
        (what, path.into_actions())
    });
    let is_all = broken.is_none() && checker.state_count() < states;
    let (unique, depth, seconds) = (checker.unique_state_count(), checker.max_depth(), began.elapsed().as_secs_f32());
    let end = if is_all { "all there are" } else { "cut off" };
    let extent = format!("{unique} states to depth {depth}, {end}, in {seconds:.1} s");
    let met = discoveries.into_iter().map(|(sight, path)| (sight, path.into_actions().len())).collect();
    Found { extent, is_all, met, broken }
}

/// The rules as they are, asked with small bounds. Returns the sights that were met, and whether all there is was seen.
fn ask(what: &str, setting: Setting, bounds: Bounds) -> (Vec<&'static str>, bool) {
    let found = search(Question { setting, bounds, begin: settled });
    if let Some((broken, steps)) = found.broken {
        let steps: Vec<String> = steps.iter().map(|step| format!("{step:?}")).collect();
        panic!("{what}: {broken}\nafter\n{}", steps.join("\n"));
    }
    println!("{what}: {}", found.extent);
    for (sight, steps) in &found.met {
        println!("  {sight}, after {steps} steps");
    }
    (found.met.into_iter().map(|(sight, _)| sight).collect(), found.is_all)
}

/// A broken rule that needs few steps, but ones that walks seldom take in that order.
fn find(mutant: Mutant, setting: Setting, bounds: Bounds, begin: fn(&mut World) -> Vec<Step>) {
    let found = search(Question { setting: Setting { mutant: Some(mutant), ..setting }, bounds, begin });
    let Some((broken, steps)) = found.broken else { panic!("{mutant:?} was not found: {}", found.extent) };
    println!("{mutant:?}: {broken}, after {} steps; {}", steps.len(), found.extent);
    steps.iter().for_each(|step| println!("  {step:?}"));
}

fn states_max() -> usize {
    number("STATES").map_or(500_000, |states| states as usize)
}

fn setting(copies: u64, in_sync: u64) -> Setting {
    Setting { copies, in_sync, min_in_sync: 1, eager: true, purges: false, retries: false, mutant: None }
}

fn assert_met(met: &[&str], sights: &[&str]) {
    for sight in sights {
        assert!(met.contains(sight), "not met: {sight}");
    }
}

#[test]
fn failovers_and_a_crash() {
    let bounds = Bounds { writes: 2, grants: 2, crashes: 1, ..NOTHING };
    let (met, _) = ask("two writes, two grants, one crash", setting(3, 3), bounds);
    let lost = "a write is lost with the unsynced tail of a process that died";
    assert_met(&met, &["two copies believe to be primary", "a new primary keeps a tail that nobody committed", lost]);
}

#[test]
fn an_admission_and_a_failover() {
    let bounds = Bounds { writes: 1, grants: 1, losses: 1, ticks: 2, ..NOTHING };
    let (met, _) = ask("one copy catches up, one write, one grant, one loss", setting(3, 2), bounds);
    let through = "a write of unknown outcome is committed through a later barrier";
    assert_met(&met, &["a copy is admitted", "an Add is under way whose primary is deposed", through]);
    assert_met(&met, &["a copy is removed by the consent of metadata"]);
}

#[test]
fn a_purge_and_a_snapshot() {
    let bounds = Bounds { writes: 1, grants: 1, ticks: 3, ..NOTHING };
    let setting = Setting { purges: true, ..setting(2, 1) };
    let (met, _) = ask("a copy catches up while the log is purged, one grant", setting, bounds);
    assert_met(&met, &["the log of a copy is purged"]);
}

#[test]
fn a_hand_off_and_a_strong_read() {
    let bounds = Bounds { writes: 1, hand_offs: 1, reads: 1, ticks: 1, ..NOTHING };
    let (met, is_all) = ask("one write, one hand-off, one strong read", setting(2, 2), bounds);
    assert!(is_all, "the smallest group is searched to the end");
    assert_met(&met, &["a strong read is served", "a hand-off is done"]);
}

#[test]
fn two_copies_exhaustively() {
    let bounds = Bounds { writes: 1, grants: 1, ..NOTHING };
    let (met, is_all) = ask("two copies, one write, one grant", setting(2, 2), bounds);
    assert!(is_all, "the smallest group is searched to the end");
    assert_met(&met, &["a write of unknown outcome is committed through a later barrier"]);
    assert_met(&met, &["a write that some log held is in none any more, although no process died"]);
}

#[test]
fn a_copy_and_its_crash_exhaustively() {
    let bounds = Bounds { writes: 1, grants: 1, crashes: 1, ..NOTHING };
    let (_, is_all) = ask("two copies, one write, one grant, one crash", setting(2, 2), bounds);
    assert!(is_all, "the smallest group is searched to the end");
}

#[test]
fn m10_add_before_barrier() {
    let bounds = Bounds { writes: 1, grants: 1, ticks: 1, ..NOTHING };
    find(Mutant::AddBeforeBarrier, setting(3, 2), bounds, deposed_before_the_answer);
}

#[test]
fn m11_read_unconfirmed() {
    let bounds = Bounds { writes: 1, grants: 1, reads: 1, ..NOTHING };
    find(Mutant::ReadUnconfirmed, setting(2, 2), bounds, settled);
}

#[test]
fn m13_read_without_tracked() {
    let bounds = Bounds { writes: 1, grants: 1, reads: 1, ticks: 1, ..NOTHING };
    find(Mutant::ReadWithoutTracked, setting(2, 1), bounds, settled);
}
