//! Disks of the simulated group that fill up, and disks that rot.
//!
//! A full disk refuses what is to be made durable until there is room again; the copy is poisoned and reopened. A rotten one has a
//! bit turned in a stored entry: whoever reads that entry finds its CRC broken, and the copy is of no use any more. Then metadata does
//! what its leader does: the role goes to another copy, the rotten one leaves the in-sync set, and a new one is built in its place.

use std::sync::Arc;

use cluster_config::ids::CopyId;
use node::replication::messages::Event;
use node::replication::storage::StorageError;

use super::super::disk::SimDisk;
use super::super::register::SHARD;
use super::{COPIES_MAX, Group, Node, node_of};

impl Group {
    /// The disk fills up, or has room again, and then the copy is opened again.
    pub(super) fn fill_or_free(&mut self, node: usize) {
        let disk = Arc::clone(&self.nodes[node].disk);
        if !disk.is_failing() {
            self.count("full disk");
            return disk.fail_with(Some(StorageError::Full));
        }
        disk.fail_with(None);
        let is_poisoned = self.nodes[node].core.as_ref().is_some_and(|core| core.poisoned().is_some());
        if is_poisoned && !self.nodes[node].is_condemned {
            self.reopen(node);
        }
    }

    /// A bit turns in an entry of some copy's log, while another in-sync copy is sound: nothing survives the loss of all of them.
    pub(super) fn rot(&mut self, node: usize) {
        let all_sound = self.nodes.iter().all(|node| !node.disk.is_rotten() && !node.is_condemned);
        let Node { copy, disk, .. } = &self.nodes[node];
        let has_twin = self.register.group.in_sync.iter().any(|other| other != copy);
        let (len, purged) = (disk.len(), disk.purged());
        if all_sound && has_twin && len > purged {
            let seqno = purged + 1 + self.rng.below(len - purged);
            disk.flip(seqno, self.rng.below(1 << 12));
            self.count("flipped bit");
        }
    }

    /// A call of the disk failed.
    pub(super) fn storage_failed(&mut self, node: usize, error: StorageError) {
        match &error {
            StorageError::Full => {
                self.count("write refused by a full disk");
                // What waits behind a write that failed is not tried.
                self.nodes[node].writes.clear();
            }
            StorageError::Corrupt(_) if self.nodes[node].is_condemned => {}
            StorageError::Corrupt(_) => {
                self.count("rot found");
                self.nodes[node].is_condemned = true;
            }
            StorageError::Io(_) | StorageError::Refused(_) => panic!("no disk of the simulation does this: {error}"),
        }
        self.step(node, Event::StorageFailed(error));
    }

    /// One step of what metadata does about a copy that is known to be damaged.
    pub(super) fn replace_condemned(&mut self, node: usize) {
        if !self.nodes[node].is_condemned {
            return;
        }
        let (copy, group) = (self.nodes[node].copy, &self.register.group);
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
        let old = self.nodes[node].copy;
        let new = CopyId(old.0 + COPIES_MAX);
        self.nodes[node].copy = new;
        let lost = std::mem::replace(&mut self.nodes[node].disk, Arc::new(SimDisk::new(new, SHARD)));
        self.lost_disks.push(lost);
        self.register.replace(old, new);
        self.open(node);
    }

    /// The only in-sync copy left may be the rotten one, after the others were removed. More than one fault would have to be survived
    /// then, so its damage is undone.
    pub(super) fn spare_the_last(&mut self) {
        let in_sync = &self.register.group.in_sync;
        let Some(node) = in_sync.first().map(|copy| node_of(*copy)).filter(|_| in_sync.len() == 1) else { return };
        if self.nodes[node].disk.is_rotten() || self.nodes[node].is_condemned {
            self.count("spared");
            self.nodes[node].disk.mend();
            if self.nodes[node].is_condemned {
                self.reopen(node);
            }
        }
    }

    /// Everything is read once.
    pub(super) fn scrub(&mut self, node: usize) {
        if self.nodes[node].core.is_some()
            && let Err(error) = self.nodes[node].disk.scrub()
        {
            self.storage_failed(node, error);
        }
    }
}
