//! Purged logs and snapshots of the simulated group: a copy that lacks what its primary purged is replaced by the applied state of another.

use cluster_config::seqno::SeqNo;
use node::replication::messages::Event;
use node::replication::storage::{CopyStorage, EncodedEntry};

use super::{Group, node_of};

impl Group {
    /// One step of a copy that needs a snapshot: it takes one from any in-sync copy, and later replaces itself by it, in the same process.
    pub(super) fn fetch_snapshot(&mut self, node: usize) {
        let needs_one = self.nodes[node].core.as_ref().is_some_and(|core| core.needs_snapshot());
        if !needs_one {
            self.nodes[node].snapshot = None;
            return;
        }
        match self.nodes[node].snapshot.take() {
            Some(snapshot) if self.rng.percent(50) => self.install(node, snapshot),
            Some(snapshot) => self.nodes[node].snapshot = Some(snapshot),
            None => {
                let sources: Vec<usize> =
                    self.register.group.in_sync.iter().map(|copy| node_of(*copy)).filter(|at| *at != node).collect();
                let Some(source) = self.rng.pick(&sources).copied() else { return };
                // The source reads all of it.
                if let Err(error) = self.nodes[source].disk.scrub() {
                    return self.storage_failed(source, error);
                }
                let snapshot = self.nodes[source].disk.snapshot();
                let from = SeqNo(snapshot.len() as u64 + 1);
                self.nodes[node].snapshot = Some(snapshot);
                self.step(node, Event::PinLog { from, for_ms: 5000 });
            }
        }
    }

    /// The core is gone before the disk is replaced, and until its last step it said that it lacks what is purged. Whatever the register
    /// says of this copy, it has acknowledged nothing that the snapshot could be missing: the checks that follow would tell.
    fn install(&mut self, node: usize, snapshot: Vec<EncodedEntry>) {
        self.count("snapshot");
        self.shut(node);
        self.nodes[node].disk.install(snapshot);
        self.open(node);
    }

    pub(super) fn purge(&mut self, node: usize) {
        if let Some(up_to) = self.nodes[node].purge.take() {
            self.count("purge");
            self.nodes[node].disk.purge(up_to).expect("the disk purges");
        }
    }

    pub(super) fn keep_floor(&mut self, node: usize) {
        if let Some(core) = &self.nodes[node].core {
            self.nodes[node].disk.keep_floor(core.global_checkpoint()).expect("the disk remembers");
        }
    }
}
