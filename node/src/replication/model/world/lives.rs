//! What disks do, and how copies end and begin again.

use std::sync::Arc;

use bytes::Bytes;
use cluster_config::ids::Incarnation;
use cluster_config::seqno::SeqNo;

use super::{Ask, Disk, Step, TIMING, World};
use crate::replication::core::{Core, CoreOptions};
use crate::replication::messages::Event;
use crate::replication::open::open;
use crate::replication::retention::Retention;
use crate::replication::storage::LogWrite;

impl World {
    pub(super) fn sync(&mut self, copy: usize, writes: usize) {
        let replica = Arc::make_mut(&mut self.copies[copy]);
        let mut merged = LogWrite::default();
        let mut last = 0;
        for (write_id, write) in replica.writes.drain(..writes) {
            merged.merge(write);
            last = write_id;
        }
        match replica.disk.persist(merged) {
            Ok(()) => self.step(copy, Event::Persisted(last)),
            Err(broken) => self.oracle.report(broken),
        }
    }

    pub(super) fn apply(&mut self, copy: usize, up_to: SeqNo) {
        match Arc::make_mut(&mut self.copies[copy]).disk.apply(up_to) {
            Ok(()) => self.step(copy, Event::Applied(up_to)),
            Err(broken) => self.oracle.report(broken),
        }
    }

    pub(super) fn work_eagerly(&mut self) {
        for copy in 0..self.copies.len() {
            while !self.copies[copy].lookups.is_empty() {
                self.happen(Step::LookUp { copy, early: false });
            }
            let target = self.copies[copy].apply_target;
            if target.0 as usize > self.copies[copy].disk.applied && self.oracle.broken().is_none() {
                self.apply(copy, target);
            }
        }
    }

    /// Everything volatile goes. Of the writes under way the first `kept` have become durable.
    pub(super) fn reopen(&mut self, copy: usize, kept: usize) {
        let replica = Arc::make_mut(&mut self.copies[copy]);
        let writes = std::mem::take(&mut replica.writes);
        for (_, write) in writes.into_iter().take(kept) {
            if let Err(broken) = replica.disk.persist(write) {
                self.oracle.report(broken);
            }
        }
        replica.core = opened(&replica.disk, replica.incarnation, self.setting.purges);
        replica.life += 1;
        replica.now_ms = 0;
        replica.lookups.clear();
        replica.apply_target = SeqNo(replica.disk.applied as u64);
        let (to, unanswered) = (replica.disk.copy, std::mem::take(&mut replica.asks));
        let life = replica.life;
        self.mail.retain(|mail| !mail.is_for_former_life(copy, life));
        for Ask { from, life, append_id } in unanswered.into_iter().flatten() {
            self.step_if(from, life, Event::AppendFailed { to, append_id });
        }
    }
}

pub(super) fn opened(disk: &Disk, incarnation: Incarnation, purges: bool) -> Core {
    // Either nothing stays that nobody needs, two entries are too many for a laggard, or everything stays.
    let bytes_min = if purges { 0 } else { u64::MAX };
    let retention = Retention { bytes_min, bytes_max: 64, age_max_ms: u64::MAX };
    let opened = open(disk).expect("the model's disk opens");
    Core::new(CoreOptions {
        incarnation,
        timing: TIMING,
        retention,
        stored: opened.stored,
        term_starts: opened.term_starts,
        unapplied: opened.unapplied,
        barrier_payload: Bytes::new(),
    })
}
