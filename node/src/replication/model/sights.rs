//! States worth seeing. A search that never meets them proves little.

use cluster_config::ids::{CopyId, OperationId};
use cluster_config::seqno::PrimaryTerm;

use super::world::World;
use crate::replication::messages::{Change, Proposal};

/// A name and whether a world shows it.
pub(super) type Sight = (&'static str, fn(&World) -> bool);

pub(super) const SIGHTS: [Sight; 16] = [
    ("two copies believe to be primary", |world| primaries(world).count() > 1),
    ("a new primary keeps a tail that nobody committed", keeps_a_tail),
    ("a write of unknown outcome is committed through a later barrier", is_committed_through_a_barrier),
    ("a write that some log held is in none any more, although no process died", has_cut_a_tail),
    ("a write is lost with the unsynced tail of a process that died", has_lost_a_tail),
    ("a copy is admitted", has_admitted),
    ("a copy is removed by the consent of metadata", has_removed),
    ("an Add is under way whose primary is deposed", has_a_void_add),
    ("a strong read is served", |world| world.oracle.reads_served > 0),
    ("the log of a copy is purged", |world| world.copies.iter().any(|replica| replica.disk.purged > 0)),
    ("a copy needs a snapshot", |world| world.copies.iter().any(|replica| replica.core.needs_snapshot())),
    ("a copy goes on from a snapshot", goes_on_from_a_snapshot),
    ("a hand-off is proposed", |world| world.proposals().any(is_hand_off)),
    ("a hand-off is done", |world| world.hand_offs_done > 0),
    ("the role passes to another copy three times", |world| moves(world) >= 3),
    ("both writes are acknowledged", |world| world.oracle.acknowledgements() >= 2),
];

fn primaries(world: &World) -> impl Iterator<Item = usize> + '_ {
    (0..world.copies.len()).filter(|copy| world.copies[*copy].core.is_primary())
}

fn keeps_a_tail(world: &World) -> bool {
    primaries(world).any(|copy| {
        let replica = &world.copies[copy];
        let tail = replica.memory_log().into_iter().skip(world.oracle.externalised.len());
        let term = replica.core.confirmed_term();
        replica.core.is_primary_in(term)
            && tail.into_iter().any(|entry| entry.operation_id != OperationId(0) && entry.term < term)
    })
}

fn is_committed_through_a_barrier(world: &World) -> bool {
    let entries = &world.oracle.externalised;
    entries.windows(2).any(|pair| {
        let ((earlier, operation), (later, barrier)) = (pair[0], pair[1]);
        earlier < later && barrier == OperationId(0) && world.oracle.is_unknown(operation)
    })
}

/// Operations that were appended once and stand in no log.
fn has_vanished(world: &World) -> bool {
    let found = world.operations_in_logs();
    let is_looked_up =
        |operation| world.copies.iter().any(|replica| replica.lookups.iter().any(|(id, ..)| *id == operation));
    world.oracle.taken().any(|operation| !found.contains(&operation) && !is_looked_up(operation))
}

fn nobody_died(world: &World) -> bool {
    world.copies.iter().all(|replica| replica.life == 1)
}

fn has_cut_a_tail(world: &World) -> bool {
    nobody_died(world) && has_vanished(world)
}

fn has_lost_a_tail(world: &World) -> bool {
    !nobody_died(world) && has_vanished(world)
}

fn has_admitted(world: &World) -> bool {
    world.group().in_sync.iter().any(|copy| copy.0 > world.setting.in_sync)
}

fn has_removed(world: &World) -> bool {
    let group = world.group();
    let in_sync = |copy: u64| group.in_sync.contains(&CopyId(copy));
    group.primary_term == PrimaryTerm(1) && (1..=world.setting.in_sync).any(|copy| !in_sync(copy))
}

fn has_a_void_add(world: &World) -> bool {
    let term = world.group().primary_term;
    world.proposals().any(|proposal| matches!(proposal.change, Change::Add { .. }) && proposal.term < term)
}

fn goes_on_from_a_snapshot(world: &World) -> bool {
    world.copies.iter().any(|replica| replica.fetched && replica.disk.log.len() > replica.disk.purged)
}

/// How often another copy became primary than the one before.
fn moves(world: &World) -> usize {
    let mut primaries: Vec<CopyId> = world.history.iter().filter_map(|group| group.primary_copy()).collect();
    primaries.dedup();
    primaries.len().saturating_sub(1)
}

fn is_hand_off(proposal: &Proposal) -> bool {
    matches!(proposal.change, Change::HandOff(_))
}
