//! Breadth-first search through the model with `stateright`, from a group that has settled, within small bounds.

use std::fmt;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::sights::SIGHTS;
use super::world::{Bounds, Setting, Step, World};

/// A bounded question to the model.
struct Question {
    setting: Setting,
    bounds: Bounds,
}

impl Model for Question {
    type State = World;
    type Action = Step;

    /// A group whose first primary has opened its term everywhere.
    fn init_states(&self) -> Vec<World> {
        let mut world = World::new(self.setting, self.bounds);
        world.settle();
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
        let mut properties =
            vec![Property::<Self>::always("nothing is broken", |_, world| world.oracle.broken().is_none())];
        properties.extend(SIGHTS.iter().zip(SEEN).map(|((name, _), seen)| Property::sometimes(name, seen)));
        properties
    }
}

/// `stateright` takes plain functions.
type Seen = fn(&Question, &World) -> bool;

const SEEN: [Seen; SIGHTS.len()] =
    [seen::<0>, seen::<1>, seen::<2>, seen::<3>, seen::<4>, seen::<5>, seen::<6>, seen::<7>, seen::<8>, seen::<9>, seen::<10>, seen::<11>, seen::<12>, seen::<13>];

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

/// What a search of at most `states` states came to.
fn search(what: &str, setting: Setting, bounds: Bounds, states: usize) -> Vec<&'static str> {
    let began = Instant::now();
    let question = Question { setting, bounds };
    let options = question.checker().finish_when(HasDiscoveries::AnyFailures).target_state_count(states);
    let checker = options.spawn_bfs().join();
    let (unique, depth) = (checker.unique_state_count(), checker.max_depth());
    let end = if checker.state_count() < states { "all of them" } else { "cut off" };
    println!("{what}: {unique} states to depth {depth}, {end}, in {:.1} s", began.elapsed().as_secs_f32());
    let mut discoveries = checker.discoveries();
    if let Some(path) = discoveries.remove("nothing is broken") {
        let last = path.last_state().clone();
        let steps: Vec<String> = path.into_actions().iter().map(|step| format!("{step:?}")).collect();
        panic!("{what}: {last:?}\nafter\n{}", steps.join("\n"));
    }
    discoveries.iter().for_each(|(sight, path)| println!("  {sight}: after {} steps", path.clone().into_actions().len()));
    discoveries.into_keys().collect()
}

const NOTHING: Bounds =
    Bounds { writes: 0, grants: 0, expiries: 0, crashes: 0, disk_failures: 0, losses: 0, repeats: 0, ticks: 0, reads: 0, hand_offs: 0 };

fn setting(copies: u64, in_sync: u64) -> Setting {
    Setting { copies, in_sync, min_in_sync: 1, eager: true, purges: false, retries: false, mutant: None }
}

#[test]
fn failovers_and_a_crash() {
    let bounds = Bounds { writes: 2, grants: 2, crashes: 1, ..NOTHING };
    search("two writes, two grants, one crash", setting(3, 3), bounds, 300_000);
}

#[test]
fn an_admission_and_a_failover() {
    let bounds = Bounds { writes: 1, grants: 1, losses: 1, ticks: 2, ..NOTHING };
    search("one copy catches up, one write, one grant, one loss", setting(3, 2), bounds, 300_000);
}

#[test]
fn two_copies_exhaustively() {
    let bounds = Bounds { writes: 1, grants: 1, ..NOTHING };
    search("two copies, one write, one grant", setting(2, 2), bounds, 1_000_000);
}
