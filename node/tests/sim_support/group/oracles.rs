//! What must hold in the simulated group after every step, and at the end.

use cluster_config::ids::OperationId;
use cluster_config::shard_group::CopyRole;
use node::replication::storage::StorageError;

use super::client::Fate;
use super::{Group, node_of};

impl Group {
    /// Compares what a copy holds to be committed with what any copy ever did.
    pub(super) fn externalise(&mut self, node: usize) {
        let Some(core) = &self.nodes[node].core else { return };
        let committed = core.global_checkpoint().0 as usize;
        for seqno in self.nodes[node].compared + 1..=committed {
            let entry = self.nodes[node].disk.entry(seqno).expect("the global checkpoint is durable");
            if let Some(known) = self.externalised.get(seqno - 1) {
                assert_eq!(*known, entry, "copy {} committed something else at {seqno}", self.nodes[node].copy);
                continue;
            }
            if entry.operation_id != OperationId(0) {
                assert!(self.externalised_ids.insert(entry.operation_id), "operation {} twice", entry.operation_id);
                let fate = self.operations[&entry.operation_id];
                assert!(fate != Fate::Refused, "operation {} was refused as not taken", entry.operation_id);
            }
            self.externalised.push(entry);
        }
        self.nodes[node].compared = self.nodes[node].compared.max(committed);
    }

    pub(super) fn check(&mut self) {
        for node in 0..self.nodes.len() {
            self.externalise(node);
            let Some(core) = &self.nodes[node].core else { continue };
            core.check().unwrap_or_else(|broken| panic!("copy {}: {broken}", core.copy()));
            if let Some(StorageError::Corrupt(why)) = core.poisoned()
                && !self.nodes[node].is_condemned
            {
                panic!("copy {} diverged: {why}", core.copy());
            }
            // A grant whose term is not durable yet has shown itself to nobody, and may be taken up again after a reopening.
            let term = core.confirmed_term();
            if core.is_primary_in(term) {
                let holder = (core.copy(), self.nodes[node].life);
                assert_eq!(*self.primaries.entry(term).or_insert(holder), holder, "two primaries in term {term}");
            }
        }
        // Inv2: a copy of the register's in-sync set holds every externalised entry, durably.
        if let Some(last) = self.externalised.last() {
            for copy in &self.register.group.in_sync {
                let held = self.nodes[node_of(*copy)].disk.entry(self.externalised.len());
                assert_eq!(held.as_ref(), Some(last), "in-sync copy {copy} lacks a committed entry");
            }
        }
        self.steps += 1;
        if self.steps.is_multiple_of(64) {
            self.check_log_matching();
        }
    }

    /// Inv1: where two logs have an entry of the same seqno and term, they are equal up to there.
    pub(super) fn check_log_matching(&self) {
        let logs: Vec<_> = (0..self.nodes.len()).map(|node| self.memory_log(node)).collect();
        for (a, b) in logs.iter().enumerate().flat_map(|(n, a)| logs[..n].iter().map(move |b| (a, b))) {
            if let Some(agreed) = (0..a.len().min(b.len())).rev().find(|n| a[*n].term == b[*n].term) {
                assert_eq!(a[..=agreed], b[..=agreed], "logs agree at {} but not before", agreed + 1);
            }
        }
    }

    pub(super) fn is_whole(&self) -> bool {
        let voters = self.register.group.copies.iter().filter(|(_, record)| record.role == CopyRole::Voter).count();
        let all_acked = self.operations.values().all(|fate| matches!(fate, Fate::Acked(_)));
        let first = self.nodes[0].disk.history();
        let equal = self.nodes.iter().all(|node| node.disk.history() == first && node.disk.applied() == first.len());
        let committed = self.externalised.len() == first.len();
        voters == self.register.group.in_sync.len() && all_acked && equal && committed
    }

    /// The final state against everything that was acknowledged on the way.
    pub(super) fn check_acknowledged(&mut self) {
        self.check_log_matching();
        let log = self.nodes[0].disk.history();
        for (id, fate) in &self.operations {
            let Fate::Acked(seqno) = fate else { panic!("operation {id} was never acknowledged") };
            let found: Vec<_> = log.iter().filter(|entry| entry.operation_id == *id).map(|entry| entry.seqno).collect();
            assert_eq!(found, [*seqno], "operation {id}");
        }
        let operations = self.operations.len() as u64;
        *self.counts.entry("operation").or_default() += operations;
    }
}
