//! A primary of one copy, which keeps the log for others.

use cluster_config::ids::OperationId;
use cluster_config::operation::Operation;
use node::shard::operation::EncodedEntry;
use node::shard::{Maintenance, Shard, decide_maintenance};
use node::vector::Cancel;

use super::{LogWriter, commit, put};

/// Writes everything to the first copy as its primary would, keeping the log.
pub(crate) struct Primary<'a> {
    pub(crate) shard: &'a Shard,
    pub(crate) log: LogWriter,
    pub(crate) entries: Vec<EncodedEntry>,
}

impl<'a> Primary<'a> {
    pub(crate) fn new(shard: &'a Shard) -> Self {
        Self { shard, log: LogWriter::new(), entries: Vec::new() }
    }

    pub(crate) fn write(&mut self, operations: Vec<Operation>) {
        node::shard::validate_operations(self.shard.spec(), &operations).expect("valid");
        let entry = self.log.entry(operations);
        commit(self.shard, std::slice::from_ref(&entry));
        self.entries.push(entry);
    }

    pub(crate) fn write_own(&mut self, operation: Operation) {
        let entry = self.log.entry_of(OperationId(0), vec![operation]);
        commit(self.shard, std::slice::from_ref(&entry));
        self.entries.push(entry);
    }

    pub(crate) fn load(&mut self, prefix: &str, vectors: &[Vec<f32>]) {
        for (portion, vectors) in vectors.chunks(250).enumerate() {
            let puts = vectors.iter().enumerate();
            let puts = puts.map(|(n, vector)| put(&format!("{prefix}{}", portion * 250 + n), "text", vector));
            self.write(puts.collect());
        }
    }

    /// Does what maintenance would after a pause, until there is nothing to do.
    pub(crate) fn maintain(&mut self) -> Vec<Maintenance> {
        let mut done = Vec::new();
        while let Some(work) = self.maintain_once() {
            done.push(work);
            assert!(done.len() < 20, "maintenance does not come to an end: {done:?}");
        }
        done
    }

    /// Does the next thing that maintenance would after a pause, if there is one.
    pub(crate) fn maintain_once(&mut self) -> Option<Maintenance> {
        let work = decide_maintenance(&input_after_a_pause(self.shard))?;
        match work {
            Maintenance::Train => {
                let pieces = self.shard.train(&Cancel::never()).expect("trains");
                pieces.into_iter().for_each(|piece| self.write_own(piece));
            }
            Maintenance::IndexUpTo { generation, row_end } => {
                self.write_own(Operation::IndexUpTo { generation, row_end })
            }
            Maintenance::MeasureEffort => {
                let curve = self.shard.measure_effort(&Cancel::never()).expect("measures");
                self.write_own(curve.expect("there is an index"));
            }
        }
        Some(work)
    }
}

pub(crate) fn input_after_a_pause(shard: &Shard) -> node::shard::MaintenanceInput {
    shard.maintenance_input(std::time::Duration::from_secs(3600))
}
