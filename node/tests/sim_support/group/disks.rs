//! What the disks of the simulated group do: group commits, applying, lookups, housekeeping.

use std::sync::Arc;

use cluster_config::seqno::SeqNo;
use node::replication::messages::Event;
use node::replication::storage::{CopyStorage, EncodedEntry, LogWrite};

use super::Group;

impl Group {
    /// The log as it is in memory: the disk's, with the writes under way, and what is purged before it.
    pub(super) fn memory_log(&self, node: usize) -> Vec<EncodedEntry> {
        let mut log = self.nodes[node].disk.history();
        for (_, write) in &self.nodes[node].writes {
            if let Some(cut) = write.truncate_from {
                log.truncate(cut.0 as usize - 1);
            }
            log.extend(write.entries.iter().cloned());
        }
        log
    }

    /// One finished job of the node's disk: a write, an apply step, a lookup, or housekeeping.
    pub(super) fn work_disk(&mut self, node: usize) {
        if self.nodes[node].core.is_none() {
            return;
        }
        if let Some(error) = self.nodes[node].unreadable.take() {
            return self.storage_failed(node, error);
        }
        match self.rng.below(10) {
            0..=2 => {
                // Group commit: any number of the writes that wait share an fsync.
                let waiting = self.nodes[node].writes.len();
                let count = (1 + self.rng.below(waiting)).min(waiting);
                let mut merged: Option<(u64, LogWrite)> = None;
                for (write_id, write) in self.nodes[node].writes.drain(..count) {
                    match &mut merged {
                        Some((last, all)) => {
                            *last = write_id;
                            all.merge(write);
                        }
                        none => *none = Some((write_id, write)),
                    }
                }
                if let Some((write_id, write)) = merged {
                    match self.nodes[node].disk.persist(write) {
                        Ok(()) => self.step(node, Event::Persisted(write_id)),
                        Err(error) => self.storage_failed(node, error),
                    }
                }
            }
            3..=5 => {
                let (disk, target) = (Arc::clone(&self.nodes[node].disk), self.nodes[node].apply_target);
                let from = disk.applied();
                if from < target {
                    let to = from + 1 + self.rng.below(target - from);
                    match disk.read_range(from..to).and_then(|entries| disk.apply(&entries)) {
                        Ok(()) => self.step(node, Event::Applied(SeqNo(to as u64))),
                        Err(error) => self.storage_failed(node, error),
                    }
                }
            }
            9 => {
                self.purge(node);
                self.keep_floor(node);
            }
            _ => {
                if let Some((operation_id, term)) = self.nodes[node].lookups.pop() {
                    let seqno = self.nodes[node].disk.find_operation(operation_id).expect("the disk searches");
                    self.step(node, Event::OperationLookedUp { operation_id, term, seqno });
                }
            }
        }
    }
}
