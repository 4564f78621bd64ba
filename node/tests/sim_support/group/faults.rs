//! Disks that fill up and disks that rot.
//!
//! A full disk refuses what is to be made durable until there is room again; the copy is poisoned and reopened. A rotten one has a
//! bit turned in a stored entry: whoever reads that entry finds its CRC broken, the copy says so and is of no use any more. Metadata then
//! does what its leader does: the role goes to another copy, the rotten one leaves the in-sync set, and a new one is built in its place.

use std::sync::Arc;

use cluster_config::ids::CopyId;
use node::replication::messages::Event;
use node::replication::storage::StorageError;

use super::super::disk::SimDisk;
use super::super::register::SHARD;
use super::Group;

/// Ids of copies that take the place of others: the node is the id modulo this.
const COPIES_MAX: u64 = 100;

/// The node of a copy.
pub(super) fn node_of(copy: CopyId) -> usize {
    ((copy.0 - 1) % COPIES_MAX) as usize
}

impl Group {
    /// The disk fills up, or has room again.
    pub(super) fn fill_or_free(&mut self, node: usize) {
        let disk = Arc::clone(&self.nodes[node].disk);
        if disk.is_failing() {
            disk.fail_with(None);
        } else {
            self.count("full disk");
            disk.fail_with(Some(StorageError::Full));
        }
    }

    /// A bit turns in some stored entry of one copy. Only while another in-sync copy is sound: the loss of all of them is not survived.
    pub(super) fn rot(&mut self, node: usize) {
        let all_sound = self.nodes.iter().all(|node| !node.disk.is_rotten());
        let copy = self.nodes[node].copy;
        let has_twin = self.register.group.in_sync.iter().any(|other| *other != copy);
        let (len, purged) = (self.nodes[node].disk.len(), self.nodes[node].disk.purged());
        if all_sound && has_twin && len > purged {
            let seqno = purged + 1 + self.rng.below(len - purged);
            let bit = self.rng.below(1 << 12);
            self.nodes[node].disk.flip(seqno, bit);
            self.count("flipped bit");
        }
    }

    /// A call of the disk failed.
    pub(super) fn storage_failed(&mut self, node: usize, error: StorageError) {
        self.count(match &error {
            StorageError::Full => "write refused by a full disk",
            StorageError::Corrupt(_) => "rot found",
            StorageError::Io(_) | StorageError::Refused(_) => "other storage error",
        });
        self.step(node, Event::StorageFailed(error));
    }

    /// What the metadata leader does about a copy that is known to be rotten.
    pub(super) fn mend(&mut self, node: usize) {
        let copy = self.nodes[node].copy;
        let is_known = match &self.nodes[node].core {
            Some(core) => matches!(core.poisoned(), Some(StorageError::Corrupt(_))),
            None => self.nodes[node].refused,
        };
        if !self.nodes[node].disk.is_rotten() || !is_known {
            return;
        }
        let group = &self.register.group;
        if group.primary_copy() == Some(copy) {
            if let Some(heir) = self.heir(copy) {
                self.register.grant(heir, &[copy]);
                self.count("failover");
            }
        } else if group.in_sync.contains(&copy) {
            self.register.expire(copy);
        } else {
            self.rebuild(node);
        }
    }

    /// A new copy takes the place of one that is lost: another id, and an empty disk.
    fn rebuild(&mut self, node: usize) {
        self.count("rebuilt");
        self.shut(node);
        let (old, new) = (self.nodes[node].copy, CopyId(self.nodes[node].copy.0 + COPIES_MAX));
        self.nodes[node].copy = new;
        self.nodes[node].disk = Arc::new(SimDisk::new(new, SHARD));
        self.nodes[node].refused = false;
        self.register.replace(old, new);
        self.open(node);
    }

    /// The last sound copy may be the rotten one after others were removed. Then nothing could be built again: it is spared.
    pub(super) fn spare_the_last(&mut self) {
        let [last] = self.register.group.in_sync.iter().copied().collect::<Vec<_>>()[..] else { return };
        let node = node_of(last);
        if self.nodes[node].disk.is_rotten() {
            self.count("spared");
            self.nodes[node].disk.mend();
            let is_useless = self.nodes[node].core.as_ref().is_some_and(|core| core.poisoned().is_some());
            if is_useless || self.nodes[node].refused {
                self.nodes[node].refused = false;
                self.shut(node);
                self.open(node);
            }
        }
    }

    /// Everything is read once, as the scrub does.
    pub(super) fn scrub(&mut self, node: usize) {
        if self.nodes[node].core.is_some()
            && let Err(error) = self.nodes[node].disk.scrub()
        {
            self.storage_failed(node, error);
        }
    }
}
