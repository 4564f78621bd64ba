//! Breadth-first search through the model with `stateright`, from a group that has settled, within small bounds.

use std::fmt;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::sights::SIGHTS;
use super::world::{Bounds, NOTHING, Setting, Step, World};

const SOUND: &str = "nothing is broken";

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
        let mut properties = vec![Property::<Self>::always(SOUND, |_, world| world.oracle.broken().is_none())];
        properties.extend(SIGHTS.iter().zip(SEEN).map(|((name, _), seen)| Property::sometimes(name, seen)));
        properties
    }
}

/// `stateright` takes plain functions.
type Seen = fn(&Question, &World) -> bool;

const SEEN: [Seen; SIGHTS.len()] = [
    seen::<0>, seen::<1>, seen::<2>, seen::<3>, seen::<4>, seen::<5>, seen::<6>, seen::<7>, seen::<8>, seen::<9>,
    seen::<10>, seen::<11>, seen::<12>, seen::<13>,
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

/// What a search of at most `states` states came to: the sights it met, and whether it saw all there is.
fn search(what: &str, setting: Setting, bounds: Bounds, states: usize) -> (Vec<&'static str>, bool) {
    let began = Instant::now();
    let question = Question { setting, bounds };
    let options = question.checker().finish_when(HasDiscoveries::AnyFailures).target_state_count(states);
    let checker = options.spawn_bfs().join();
    let (unique, depth, is_all) = (checker.unique_state_count(), checker.max_depth(), checker.state_count() < states);
    let extent = if is_all { "all there are" } else { "cut off" };
    println!("{what}: {unique} states to depth {depth}, {extent}, in {:.1} s", began.elapsed().as_secs_f32());
    let mut discoveries = checker.discoveries();
    if let Some(path) = discoveries.remove(SOUND) {
        let last = path.last_state().clone();
        let steps: Vec<String> = path.into_actions().iter().map(|step| format!("{step:?}")).collect();
        panic!("{what}: {last:?}\nafter\n{}", steps.join("\n"));
    }
    for (sight, path) in &discoveries {
        println!("  {sight}, after {} steps", path.clone().into_actions().len());
    }
    (discoveries.into_keys().collect(), is_all)
}

const STATES_MAX: usize = 500_000;

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
    let (met, _) = search("two writes, two grants, one crash", setting(3, 3), bounds, STATES_MAX);
    let lost = "a write is lost with the unsynced tail of a process that died";
    assert_met(&met, &["two copies believe to be primary", "a new primary keeps a tail that nobody committed", lost]);
}

#[test]
fn an_admission_and_a_failover() {
    let bounds = Bounds { writes: 1, grants: 1, losses: 1, ticks: 2, ..NOTHING };
    let (met, _) = search("one copy catches up, one write, one grant, one loss", setting(3, 2), bounds, STATES_MAX);
    let through = "a write of unknown outcome is committed through a later barrier";
    assert_met(&met, &["a copy is admitted", "an Add is under way whose primary is deposed", through]);
    assert_met(&met, &["a copy is removed by the consent of metadata"]);
}

#[test]
fn a_purge_and_a_snapshot() {
    let bounds = Bounds { writes: 1, grants: 1, ticks: 3, ..NOTHING };
    let setting = Setting { purges: true, ..setting(2, 1) };
    let (met, _) = search("a copy catches up while the log is purged, one grant", setting, bounds, STATES_MAX);
    assert_met(&met, &["the log of a copy is purged"]);
}

#[test]
fn a_hand_off_and_a_strong_read() {
    let bounds = Bounds { writes: 1, hand_offs: 1, reads: 1, ticks: 1, ..NOTHING };
    let (met, _) = search("one write, one hand-off, one strong read", setting(2, 2), bounds, STATES_MAX);
    assert_met(&met, &["a strong read is served", "a hand-off is proposed"]);
}

#[test]
fn two_copies_exhaustively() {
    let bounds = Bounds { writes: 1, grants: 1, ..NOTHING };
    let (met, is_all) = search("two copies, one write, one grant", setting(2, 2), bounds, STATES_MAX);
    assert!(is_all, "the smallest group is searched to the end");
    assert_met(&met, &["a write of unknown outcome is committed through a later barrier"]);
    assert_met(&met, &["a write that some log held is in none any more, although no process died"]);
}

#[test]
fn a_copy_and_its_crash_exhaustively() {
    let bounds = Bounds { writes: 1, grants: 1, crashes: 1, ..NOTHING };
    let (_, is_all) = search("two copies, one write, one grant, one crash", setting(2, 2), bounds, STATES_MAX);
    assert!(is_all, "the smallest group is searched to the end");
}
