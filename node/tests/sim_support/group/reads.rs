//! Strong reads and hand-offs of the simulated group, and what must be true of them.

use std::collections::BTreeMap;

use cluster_config::ids::CopyId;
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use node::replication::core::Core;
use node::replication::messages::{Event, HandOffRefusal, RequestId, SendConfirm};

use super::{Group, Mail, node_of};

/// Calls under way, and what was shown to somebody.
#[derive(Default)]
pub(super) struct Calls {
    /// What a read must at least see.
    reads: BTreeMap<RequestId, SeqNo>,
    /// In which term it was asked.
    hand_offs: BTreeMap<RequestId, PrimaryTerm>,
    /// The newest position that an acknowledgement or a strong read has shown.
    shown: SeqNo,
}

impl Group {
    /// Somebody learned that entries up to here exist.
    pub(super) fn show(&mut self, seqno: SeqNo) {
        self.calls.shown = self.calls.shown.max(seqno);
    }

    /// Asks whoever holds itself to be primary, rather one that is not any more.
    pub(super) fn strong_read(&mut self) {
        let believers = self.nodes.iter().enumerate().filter_map(|(node, it)| Some((node, it.core.as_ref()?)));
        let believers = believers.filter(|(_, core)| core.is_primary());
        if let Some((node, _)) = believers.min_by_key(|(_, core)| core.confirmed_term()) {
            let request = self.request();
            self.calls.reads.insert(request, self.calls.shown);
            self.step(node, Event::StrongRead { request });
        }
    }

    /// What an acknowledgement or an earlier read has shown, a later read must not miss, whatever the order of terms.
    pub(super) fn served(&mut self, node: usize, request: RequestId, seqno: SeqNo) {
        self.count("strong read");
        let least = self.calls.reads.remove(&request).expect("a read is answered once");
        let applied = SeqNo(self.nodes[node].disk.applied() as u64);
        assert!(applied >= seqno, "served at {seqno} with {applied} applied");
        assert!(applied >= least, "a strong read at {applied} misses {least}, shown before it began");
        self.externalise(node);
        self.show(applied);
    }

    pub(super) fn read_refused(&mut self, request: RequestId) {
        self.calls.reads.remove(&request).expect("a read is answered once");
    }

    pub(super) fn send_confirm(&mut self, node: usize, send: SendConfirm) {
        let life = self.nodes[node].life;
        let to = node_of(send.to);
        self.mail.push(Mail::Confirm { from: node, life, round: send.round, to });
    }

    pub(super) fn confirm(&mut self, from: usize, life: u64, round: u64, to: usize) {
        let copy = self.nodes[to].copy;
        match &self.nodes[to].core {
            None => self.step_if(from, life, Event::ConfirmFailed { round, copy }),
            Some(core) => {
                let term = if core.poisoned().is_some() { PrimaryTerm(0) } else { core.confirmed_term() };
                self.mail.push(Mail::Confirmed { to: from, life, round, copy, term });
            }
        }
    }

    /// The primary at a node, if it is one, is asked to pass the role on: mostly to an in-sync copy, sometimes to any.
    pub(super) fn hand_off(&mut self, node: usize) {
        let Some(core) = self.nodes[node].core.as_ref().filter(|core| core.is_primary()) else { return };
        let term = core.group().expect("a primary knows its register").primary_term;
        let request = self.request();
        let any = CopyId(1 + self.rng.below(self.nodes.len()) as u64);
        let to = self.heir(self.nodes[node].copy).filter(|_| self.rng.percent(90)).unwrap_or(any);
        let patience_ms = self.rng.next() % 10_000;
        self.calls.hand_offs.insert(request, term);
        self.step(node, Event::HandOff { request, to, patience_ms });
    }

    pub(super) fn handed_off(&mut self, node: usize, request: RequestId, result: Result<(), HandOffRefusal>) {
        let asked_in = self.calls.hand_offs.remove(&request).expect("a hand-off is answered once");
        match result {
            Ok(()) => {
                self.count("hand-off");
                assert!(!self.nodes[node].core.as_ref().is_some_and(Core::is_primary), "the role has left");
                let group = &self.register.group;
                let has_moved = group.primary_term > asked_in || group.primary.is_none();
                assert!(has_moved, "handed off in term {asked_in}, but the register says {group:?}");
            }
            Err(_) => self.count("hand-off refused"),
        }
    }
}
