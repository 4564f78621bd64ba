//! What can happen next, within the bounds that are left.

use cluster_config::ids::{CopyId, OperationId};
use cluster_config::seqno::SeqNo;
use cluster_config::shard_group::ShardGroup;

use super::{Mail, Replica, Step, World};
use crate::replication::mutant::Mutant;

impl World {
    pub(in crate::replication::model) fn steps(&self, steps: &mut Vec<Step>) {
        for (copy, replica) in self.copies.iter().enumerate() {
            self.steps_of_copy(copy, replica, steps);
        }
        for (mail, what) in self.mail.iter().enumerate() {
            steps.push(Step::Deliver { mail, keep: false, cut: 0 });
            let entries = if let Mail::Append { append, .. } = what { append.entries.len() } else { 0 };
            let cuts = [1, entries].into_iter().filter(|cut| *cut <= entries && *cut > 0);
            steps.extend(cuts.map(|cut| Step::Deliver { mail, keep: false, cut }));
            if self.left.repeats > 0 && !matches!(what, Mail::Propose { .. }) {
                steps.push(Step::Deliver { mail, keep: true, cut: 0 });
            }
            if self.left.losses > 0 {
                steps.extend([Step::Lose { mail }, Step::GiveUp { mail }]);
            }
        }
        let group = self.group();
        for copy in 0..self.copies.len() {
            let id = CopyId(copy as u64 + 1);
            let may_be_granted =
                group.in_sync.contains(&id) || self.setting.mutant == Some(Mutant::PromoteOutsideInSync);
            if self.left.grants > 0 && may_be_granted {
                steps.push(Step::Grant { copy, drop: false });
                if group.primary_copy().is_some_and(|primary| primary != id) {
                    steps.push(Step::Grant { copy, drop: true });
                }
            }
            let may_expire = group.in_sync.contains(&id) && group.in_sync.len() > 1 && group.primary_copy() != Some(id);
            if self.left.expiries > 0 && may_expire {
                steps.push(Step::Expire { copy });
            }
        }
    }

    fn steps_of_copy(&self, copy: usize, replica: &Replica, steps: &mut Vec<Step>) {
        let known = replica.core.group().map_or(0, |group| group.version);
        let learns_old = self.setting.mutant == Some(Mutant::OldRegistersLearned);
        let is_news = |version: &usize| learns_old || self.history[*version].version > known;
        steps.extend((0..self.history.len()).filter(is_news).map(|version| Step::Learn { copy, version }));
        if !replica.writes.is_empty() {
            steps.push(Step::Sync { copy, writes: replica.writes.len() });
            if replica.writes.len() > 1 {
                steps.push(Step::Sync { copy, writes: 1 });
            }
        }
        let applied = SeqNo(replica.disk.applied as u64);
        if replica.apply_target > applied {
            steps.push(Step::Apply { copy, up_to: applied.next() });
            if replica.apply_target > applied.next() {
                steps.push(Step::Apply { copy, up_to: replica.apply_target });
            }
        }
        if !replica.lookups.is_empty() {
            steps.extend([Step::LookUp { copy, early: true }, Step::LookUp { copy, early: false }]);
        }
        if self.left.writes > 0 && replica.core.is_primary() {
            let known = self.oracle.operations();
            let first = if self.setting.retries { 1 } else { known + 1 };
            steps.extend((first..=known + 1).map(|id| Step::Write { copy, operation: OperationId(id) }));
        }
        if self.left.reads > 0 && replica.core.is_primary() {
            steps.push(Step::Read { copy });
        }
        if self.left.hand_offs > 0 && replica.core.is_primary() {
            steps.extend((0..self.copies.len()).filter(|to| *to != copy).map(|to| Step::HandOff { copy, to }));
        }
        if replica.core.needs_snapshot() {
            let is_in_sync = |group: &ShardGroup, copy: usize| group.in_sync.contains(&CopyId(copy as u64 + 1));
            let is_needed = replica.core.group().is_some_and(|group| !is_in_sync(group, copy));
            let may_be_source = |from: &usize| is_needed && *from != copy && is_in_sync(self.group(), *from);
            steps.extend((0..self.copies.len()).filter(may_be_source).map(|from| Step::Fetch { copy, from }));
        }
        if self.left.ticks > 0 {
            steps.push(Step::Tick { copy });
        }
        if self.left.crashes > 0 {
            steps.push(Step::Crash { copy, kept: 0, unapplied: 0 });
            if !replica.writes.is_empty() {
                steps.push(Step::Crash { copy, kept: replica.writes.len(), unapplied: 0 });
            }
            if !self.setting.eager && replica.disk.applied > replica.disk.purged {
                steps.push(Step::Crash { copy, kept: replica.writes.len() / 2, unapplied: 1 });
            }
        }
        if replica.core.poisoned().is_some() {
            steps.push(Step::Reopen { copy, kept: 0 });
            if !replica.writes.is_empty() {
                steps.push(Step::Reopen { copy, kept: 1 });
            }
        } else if self.left.disk_failures > 0 {
            steps.push(Step::FailDisk { copy });
        }
    }
}
