//! Which worlds are the same: those that differ in nothing that can still matter. Clocks become ages and the numbers of messages
//! what they mean to whoever waits; messages under way have no order.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::world::{Mail, Replica, World};
use crate::replication::messages::Append;

impl Hash for World {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.left.hash(hasher);
        self.oracle.hash(hasher);
        self.hand_offs_done.hash(hasher);
        self.history.len().hash(hasher);
        for group in &self.history {
            let primary = group.primary.map(|grant| (grant.copy, grant.incarnation));
            (group.primary_term, primary, &group.in_sync).hash(hasher);
        }
        self.copies.iter().for_each(|replica| self.hash_replica(replica, hasher));
        let under_way = self.mail.iter().fold(0u64, |sum, mail| sum.wrapping_add(self.hash_of_mail(mail)));
        under_way.hash(hasher);
    }
}

impl World {
    fn hash_replica(&self, replica: &Replica, hasher: &mut impl Hasher) {
        let Replica { core, disk, incarnation, life, now_ms: _, writes, lookups, .. } = replica;
        core.fingerprint(hasher);
        (disk.term, disk.log.len(), disk.purged, disk.applied, incarnation, life, replica.apply_target()).hash(hasher);
        disk.log.iter().for_each(|entry| (entry.term, entry.operation_id).hash(hasher));
        writes.len().hash(hasher);
        for (_, write) in writes {
            (write.term, write.truncate_from, write.entries.len()).hash(hasher);
            write.entries.iter().for_each(|entry| (entry.seqno, entry.term, entry.operation_id).hash(hasher));
        }
        lookups.hash(hasher);
        for ask in replica.asked_by() {
            ask.map(|(from, life, append_id)| (from, self.standing(from, life, replica, append_id))).hash(hasher);
        }
    }

    /// What an answer to the message still means to its sender.
    fn standing(&self, from: usize, life: u8, to: &Replica, append_id: u64) -> Option<u8> {
        let sender = &self.copies[from];
        (sender.life == life).then(|| sender.core.standing_of_append(to.disk.copy, append_id))
    }

    fn hash_of_mail(&self, mail: &Mail) -> u64 {
        let mut hasher = DefaultHasher::new();
        std::mem::discriminant(mail).hash(&mut hasher);
        match mail {
            Mail::Append { from, life, append_id, to, append } => {
                let Append { term, prev, entries, global_checkpoint, log_start, .. } = &**append;
                (from, to, self.standing(*from, *life, &self.copies[*to], *append_id)).hash(&mut hasher);
                (term, prev, global_checkpoint, log_start, entries.len()).hash(&mut hasher);
                entries.iter().for_each(|entry| (entry.term, entry.operation_id).hash(&mut hasher));
            }
            Mail::Reply { to, life, append_id, result } => {
                let by = &self.copies[result.copy.0 as usize - 1];
                (to, result.copy, self.standing(*to, *life, by, *append_id)).hash(&mut hasher);
                (result.incarnation, result.term, result.pinned, result.outcome).hash(&mut hasher);
            }
            Mail::Propose { from, life, proposal } => {
                let is_awaited = self.awaits_proposal(*from, *life, proposal.id);
                (from, is_awaited, proposal.expect_version, proposal.term, proposal.change).hash(&mut hasher);
            }
            Mail::Decision { to, life, id, outcome } => {
                let is_awaited = self.awaits_proposal(*to, *life, *id);
                (to, is_awaited, outcome.accepted, outcome.register.version).hash(&mut hasher);
            }
            Mail::Register { to, life, version } => (to, life, version).hash(&mut hasher),
            Mail::Confirm { from, life, round, to } => {
                (from, self.awaits_round(*from, *life, *round), to).hash(&mut hasher)
            }
            Mail::Confirmed { to, life, round, by, term } => {
                (to, self.awaits_round(*to, *life, *round), by, term).hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    fn awaits_round(&self, copy: usize, life: u8, round: u64) -> bool {
        self.copies[copy].life == life && self.copies[copy].core.awaits_round(round)
    }

    fn awaits_proposal(&self, copy: usize, life: u8, id: u64) -> bool {
        self.copies[copy].life == life && self.copies[copy].core.awaits_proposal(id)
    }
}

/// `stateright` knows states by their hash; this is for its paths.
impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        let fingerprint = |world: &World| {
            let mut hasher = DefaultHasher::new();
            world.hash(&mut hasher);
            hasher.finish()
        };
        fingerprint(self) == fingerprint(other)
    }
}
