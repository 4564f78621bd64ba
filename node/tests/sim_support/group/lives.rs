//! How processes of the simulated group end and begin again, and how the primary role is passed on.

use bytes::Bytes;
use cluster_config::ids::CopyId;
use node::replication::core::{Core, CoreOptions, Timing};
use node::replication::messages::Event;
use node::replication::open::open;
use node::replication::storage::{CopyStorage, StorageError};

use super::{Group, node_of};

impl Group {
    /// Opens the copy of a node, if its disk is sound.
    pub(super) fn open(&mut self, node: usize) {
        let (now_ms, retention) = (self.now_ms, self.chaos.retention);
        let node = &mut self.nodes[node];
        let opened = match open(&*node.disk) {
            Ok(opened) => opened,
            Err(StorageError::Corrupt(_)) if node.disk.is_rotten() => {
                node.is_condemned = true;
                return self.count("rot found at opening");
            }
            Err(error) => panic!("the simulated disk does not open: {error}"),
        };
        node.is_condemned = false;
        let mut core = Core::new(CoreOptions {
            incarnation: node.incarnation,
            timing: Timing::default(),
            retention,
            stored: opened.stored,
            term_starts: opened.term_starts,
            unapplied: opened.unapplied,
            barrier_payload: Bytes::from_static(b"barrier"),
        });
        core.step(Event::Tick(now_ms));
        node.core = Some(core);
        node.life += 1;
        node.apply_target = node.disk.applied();
        node.compared = 0;
    }

    /// The copy goes, and with it everything volatile. Of the writes under way some may have become durable, in order.
    pub(super) fn shut(&mut self, node: usize) {
        let lost_applied = self.rng.below(4);
        let waiting = self.nodes[node].writes.len();
        let kept = self.rng.below(waiting + 1);
        match kept {
            _ if kept == waiting => {}
            0 => self.count("unsynced tail lost"),
            _ => self.count("torn group commit"),
        }
        if self.rng.percent(50) {
            self.purge(node);
        }
        let node = &mut self.nodes[node];
        (node.purge, node.snapshot, node.unreadable) = (None, None, None);
        for (_, write) in node.writes.drain(..).take(kept) {
            if node.disk.persist(write).is_err() {
                break;
            }
        }
        node.disk.lose_applied(node.disk.applied().saturating_sub(lost_applied));
        node.core = None;
        node.lookups.clear();
        let (to, unanswered) = (node.copy, std::mem::take(&mut node.appends));
        for (from, life, append_id) in unanswered.into_values() {
            self.step_if(from, life, Event::AppendFailed { to, append_id });
        }
    }

    pub(super) fn crash(&mut self, node: usize) {
        self.count("crash");
        self.shut(node);
    }

    /// The process starts again and registers: a new incarnation, and the role, if it held it, is granted anew or passed on.
    pub(super) fn restart(&mut self, node: usize) {
        let copy = self.nodes[node].copy;
        self.nodes[node].incarnation.0 += 1;
        let incarnation = self.nodes[node].incarnation;
        self.register.alive.insert(copy, incarnation);
        if self.register.group.primary_copy() == Some(copy) {
            let heir = self.heir(copy).filter(|_| self.rng.percent(50));
            self.register.grant(
                heir.unwrap_or(copy),
                if heir.is_some() && self.rng.percent(50) { std::slice::from_ref(&copy) } else { &[] },
            );
            self.count("re-grant");
        }
        self.open(node);
    }

    pub(super) fn heir(&mut self, not: CopyId) -> Option<CopyId> {
        let heirs: Vec<CopyId> = self.register.group.in_sync.iter().copied().filter(|copy| *copy != not).collect();
        self.rng.pick(&heirs).copied()
    }

    pub(super) fn failover(&mut self) {
        let Some(old) = self.register.group.primary_copy() else { return self.grant_if_vacant() };
        if let Some(heir) = self.heir(old) {
            let drop: &[CopyId] = if self.rng.percent(70) { &[old] } else { &[] };
            self.register.grant(heir, drop);
            self.count("failover");
        } else if self.rng.percent(20) {
            self.register.grant(old, &[]);
            self.count("re-grant");
        }
    }

    pub(super) fn grant_if_vacant(&mut self) {
        if self.register.group.primary.is_some() {
            return;
        }
        let in_sync: Vec<CopyId> = self.register.group.in_sync.iter().copied().collect();
        let usable = |copy: &&CopyId| self.core_of(**copy).is_some_and(|core| core.poisoned().is_none());
        let usable: Vec<CopyId> = in_sync.iter().filter(usable).copied().collect();
        if let Some(copy) = self.rng.pick(&usable).copied() {
            self.register.grant(copy, &[]);
            self.count("vacancy filled");
        }
    }

    pub(super) fn core_of(&self, copy: CopyId) -> Option<&Core> {
        self.nodes[node_of(copy)].core.as_ref()
    }

    /// The disk fails once; sooner or later the copy is opened again **in the same process**, so under the same incarnation.
    pub(super) fn poison_and_reopen(&mut self, node: usize) {
        let Some(core) = self.nodes[node].core.as_ref().filter(|_| !self.nodes[node].is_condemned) else { return };
        if core.poisoned().is_none() {
            self.count("disk failure");
            return self.step(node, Event::StorageFailed(StorageError::Io("simulated".into())));
        }
        self.reopen(node);
    }

    pub(super) fn reopen(&mut self, node: usize) {
        self.count("reopened");
        self.shut(node);
        self.open(node);
    }
}
