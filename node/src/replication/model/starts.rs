//! Where the walks begin, and within which bounds.
//!
//! The free ones begin with the first grant. The guided ones are rare orders of events in the smallest group that has them: from the moment
//! when the group has settled, or a few steps later, and with little else that could happen.

use cluster_config::ids::{CopyId, OperationId};

use super::walk::Rng;
use super::world::{Bounds, Mail, NOTHING, Setting, Step, World};

/// The kinds of starts; a walk draws one of them.
pub(super) const STARTS: [fn(&mut Rng) -> Start; 10] = [
    all_at_once,
    one_at_a_time,
    as_asked,
    admission,
    taken_back,
    retries,
    strong_reads,
    read_of_the_deposed,
    read_of_the_new,
    answer_to_the_deposed,
];

/// How a walk begins.
pub(super) struct Start {
    pub(super) setting: Setting,
    pub(super) bounds: Bounds,
    /// What happens before anything is left to chance; returns the steps.
    pub(super) begin: fn(&mut World) -> Vec<Step>,
}

fn any_setting(rng: &mut Rng) -> Setting {
    let copies = 3 + rng.below(2);
    Setting {
        copies,
        in_sync: 1 + rng.below(copies),
        min_in_sync: 1,
        eager: rng.below(2) == 0,
        purges: rng.below(3) == 0,
        retries: rng.below(2) == 0,
        mutant: None,
    }
}

/// Any fault may come with any other.
fn all_at_once(rng: &mut Rng) -> Start {
    let setting = any_setting(rng);
    let (writes, grants) = (2 + rng.below(6) as u8, 1 + rng.below(5) as u8);
    let mut few = || [0, 2, 6][rng.below(3) as usize];
    let bounds = Bounds {
        writes,
        grants,
        expiries: few(),
        crashes: few(),
        disk_failures: few(),
        losses: 4 * few(),
        repeats: few(),
        ticks: 24,
        reads: few(),
        hand_offs: few(),
    };
    Start { setting, bounds, begin: at_once }
}

/// Few grants and one kind of fault: what needs no luck but a certain order is met far more often.
fn one_at_a_time(rng: &mut Rng) -> Start {
    let setting = any_setting(rng);
    let only = rng.below(8);
    let few = |kind| if kind == only { 2 } else { 0 };
    let bounds = Bounds {
        expiries: few(0),
        crashes: few(1),
        disk_failures: few(2),
        losses: few(3),
        repeats: few(4),
        reads: few(5),
        hand_offs: few(6),
        writes: 1 + rng.below(3) as u8,
        grants: 1 + rng.below(3) as u8,
        ticks: 4 + rng.below(8) as u8,
    };
    Start { setting, bounds, begin: at_once }
}

/// What the model is to cover at least: three copies, two writes, two failovers, one crash that loses what was not synced, a purge with
/// a snapshot, one hand-off. Too much for a search to its end.
pub(super) fn as_asked(rng: &mut Rng) -> Start {
    let setting =
        Setting { copies: 3, in_sync: 2 + rng.below(2), eager: true, purges: true, retries: false, ..any_setting(rng) };
    let ticks = 8 + rng.below(16) as u8;
    let bounds = Bounds { writes: 2, grants: 2, crashes: 1, hand_offs: 1, expiries: 1, ticks, ..NOTHING };
    // The hand-off needs several answers in a row, which walks seldom leave undisturbed.
    Start { setting, bounds, begin: if rng.below(2) == 0 { settled } else { handed_off } }
}

/// A copy is admitted while a deposed primary still collects answers.
fn admission(rng: &mut Rng) -> Start {
    let setting = Setting { copies: 3, in_sync: 2, eager: true, retries: false, ..any_setting(rng) };
    let bounds = Bounds { writes: 1, grants: 1, ticks: 3 + rng.below(4) as u8, ..NOTHING };
    Start { setting, bounds, begin: settled }
}

/// The role passes and comes back, and a copy dies before it has made up its mind.
fn taken_back(rng: &mut Rng) -> Start {
    let setting = Setting { copies: 2, in_sync: 2, purges: false, ..any_setting(rng) };
    let dies = rng.below(2) as u8;
    let bounds = Bounds { writes: 2, grants: 2, crashes: dies, disk_failures: 1 - dies, ticks: 2, ..NOTHING };
    Start { setting, bounds, begin: settled }
}

/// One operation is tried at one primary after the other.
fn retries(rng: &mut Rng) -> Start {
    let setting = Setting { copies: 2, in_sync: 2, eager: false, purges: false, retries: true, ..any_setting(rng) };
    let bounds = Bounds { writes: 3, grants: 2, ticks: 3, ..NOTHING };
    Start { setting, bounds, begin: settled }
}

/// Strong reads while the role passes and a copy is admitted.
fn strong_reads(rng: &mut Rng) -> Start {
    let setting = Setting { copies: 3, in_sync: 1 + rng.below(3), eager: true, retries: false, ..any_setting(rng) };
    let bounds = Bounds { writes: 2, grants: 2, reads: 2, ticks: 2 + rng.below(5) as u8, ..NOTHING };
    Start { setting, bounds, begin: settled }
}

/// A primary that does not know that its role has passed is asked to read: to an in-sync copy, or to one that it has just admitted.
fn read_of_the_deposed(rng: &mut Rng) -> Start {
    let setting = Setting { copies: 2, in_sync: 1 + rng.below(2), eager: true, retries: false, ..any_setting(rng) };
    Start { setting, bounds: Bounds { writes: 1, grants: 1, reads: 1, ticks: 2, ..NOTHING }, begin: settled }
}

/// A new primary is asked to read what its predecessor has acknowledged and it does not know to be committed.
fn read_of_the_new(rng: &mut Rng) -> Start {
    let setting = Setting { copies: 2, in_sync: 2, eager: true, purges: false, retries: false, ..any_setting(rng) };
    Start { setting, bounds: Bounds { writes: 1, grants: 1, reads: 1, ticks: 1, ..NOTHING }, begin: acknowledged }
}

/// A copy is admitted by a new primary while the answer to the last write of the deposed one is still under way.
fn answer_to_the_deposed(rng: &mut Rng) -> Start {
    let setting = Setting { copies: 3, in_sync: 2, eager: true, purges: false, retries: false, ..any_setting(rng) };
    Start { setting, bounds: Bounds { writes: 1, grants: 1, ticks: 1, ..NOTHING }, begin: deposed_before_the_answer }
}

// ---- what happens first ----------------------------------------------------------------------------------------------------

fn at_once(_: &mut World) -> Vec<Step> {
    Vec::new()
}

/// The first primary has opened its term everywhere.
pub(super) fn settled(world: &mut World) -> Vec<Step> {
    world.settle();
    Vec::new()
}

/// The role has been handed to the second copy.
fn handed_off(world: &mut World) -> Vec<Step> {
    world.settle();
    let mut steps = Vec::new();
    take(world, &mut steps, Step::HandOff { copy: 0, to: 1 });
    world.settle();
    world.settle();
    steps
}

/// A write is durable on every in-sync copy; the answers are under way.
fn answered(world: &mut World) -> Vec<Step> {
    world.settle();
    let mut steps = Vec::new();
    take(world, &mut steps, Step::Write { copy: 0, operation: OperationId(1) });
    take(world, &mut steps, Step::Sync { copy: 0, writes: 1 });
    deliver_all(world, &mut steps, |world, mail| match mail {
        Mail::Append { to, .. } => world.group().in_sync.contains(&CopyId(*to as u64 + 1)),
        _ => false,
    });
    (1..world.copies.len()).for_each(|copy| sync(world, &mut steps, copy));
    steps
}

/// A write is acknowledged, and only its primary knows.
fn acknowledged(world: &mut World) -> Vec<Step> {
    let mut steps = answered(world);
    deliver_all(world, &mut steps, |_, mail| matches!(mail, Mail::Reply { .. }));
    steps
}

/// The role passes while the answers to a write are under way, and the new primary learns where the copy that catches up ends.
pub(super) fn deposed_before_the_answer(world: &mut World) -> Vec<Step> {
    let mut steps = answered(world);
    take(world, &mut steps, Step::Grant { copy: 1, drop: false });
    let version = world.history.len() - 1;
    take(world, &mut steps, Step::Learn { copy: 1, version });
    sync(world, &mut steps, 1);
    deliver_all(world, &mut steps, |_, mail| matches!(mail, Mail::Append { from: 1, to: 2, .. }));
    sync(world, &mut steps, 2);
    deliver_all(world, &mut steps, |_, mail| matches!(mail, Mail::Reply { to: 1, .. }));
    steps
}

/// Where a broken rule has shown already, nothing happens any more.
fn take(world: &mut World, steps: &mut Vec<Step>, step: Step) {
    if world.oracle.broken().is_none() {
        steps.push(step);
        world.take(step);
    }
}

fn sync(world: &mut World, steps: &mut Vec<Step>, copy: usize) {
    let writes = world.copies[copy].writes.len();
    if writes > 0 {
        take(world, steps, Step::Sync { copy, writes });
    }
}

fn deliver_all(world: &mut World, steps: &mut Vec<Step>, is_meant: fn(&World, &Mail) -> bool) {
    while world.oracle.broken().is_none()
        && let Some(mail) = world.mail.iter().position(|mail| is_meant(world, mail))
    {
        take(world, steps, Step::Deliver { mail, keep: false, cut: 0 });
    }
}
