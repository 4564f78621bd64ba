//! Clients of the simulated group: new writes, retries, and what the answers must be true to.

use bytes::Bytes;
use cluster_config::ids::OperationId;
use cluster_config::seqno::SeqNo;
use node::replication::messages::{Event, RequestId, WriteRefusal};

use super::Group;

/// What the client of an operation knows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// At least one attempt is under way or ended in the unknown.
    Maybe,
    /// Every attempt was refused as not taken.
    Refused,
    Acked(SeqNo),
}

impl Group {
    pub(super) fn request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    /// Writes something new, or tries again what is not acknowledged, at some node.
    pub(super) fn write(&mut self, node: usize, only_retry: bool) {
        if self.nodes[node].core.is_none() {
            return;
        }
        let open: Vec<OperationId> =
            self.operations.iter().filter(|(_, fate)| !matches!(fate, Fate::Acked(_))).map(|(id, _)| *id).collect();
        let acked_again = !only_retry && self.rng.percent(5);
        let known: Vec<OperationId> = if acked_again { self.operations.keys().copied().collect() } else { open };
        let retry = (only_retry || self.rng.percent(50)).then(|| self.rng.pick(&known).copied()).flatten();
        let operation_id = match retry {
            Some(id) => id,
            None if only_retry => return,
            None => OperationId(self.operations.len() as u128 + 1),
        };
        let request = self.request();
        let life = self.nodes[node].life;
        self.requests.insert(request, (operation_id, node, life));
        let fate = self.operations.entry(operation_id).or_insert(Fate::Maybe);
        if *fate == Fate::Refused {
            *fate = Fate::Maybe;
        }
        *self.attempts.entry(operation_id).or_default() += 1;
        let payload = Bytes::copy_from_slice(&operation_id.0.to_be_bytes());
        self.step(node, Event::Write { request, operation_id, payload });
    }

    pub(super) fn acked(&mut self, node: usize, request: RequestId, seqno: SeqNo, copies_acked: u32) {
        self.count("ack");
        let (operation_id, ..) = self.requests.remove(&request).expect("a write is answered once");
        self.externalise(node);
        let entry = self.externalised.get(seqno.0 as usize - 1).expect("an acknowledged write is committed");
        assert_eq!(entry.operation_id, operation_id, "acknowledged at {seqno}, but another operation stands there");
        assert!(self.nodes[node].disk.applied() >= seqno.0 as usize, "an acknowledged write is applied on its primary");
        let disks = self.nodes.iter().map(|node| &node.disk).chain(&self.lost_disks);
        let holders = disks.filter(|disk| disk.entry(seqno.0 as usize).as_ref() == Some(entry)).count();
        assert!(holders >= copies_acked as usize, "{copies_acked} copies acknowledged {seqno}, {holders} hold it");
        let before = self.operations.insert(operation_id, Fate::Acked(seqno));
        if let Some(Fate::Acked(earlier)) = before {
            assert_eq!(earlier, seqno, "a retry was acknowledged at another position");
        }
        self.show(seqno);
    }

    pub(super) fn refused(&mut self, request: RequestId, refusal: &WriteRefusal) {
        let (operation_id, ..) = self.requests.remove(&request).expect("a write is answered once");
        let attempts = self.attempts.get_mut(&operation_id).expect("it was attempted");
        match refusal {
            WriteRefusal::Interrupted => self.count("interrupted"),
            WriteRefusal::NotPrimary | WriteRefusal::NotEnoughCopies { .. } | WriteRefusal::Overloaded => {
                *attempts -= 1;
                if *attempts == 0 && self.operations[&operation_id] == Fate::Maybe {
                    self.operations.insert(operation_id, Fate::Refused);
                    let taken = self.externalised_ids.contains(&operation_id);
                    assert!(!taken, "operation {operation_id} was refused as not taken, yet it is committed");
                }
            }
        }
    }
}
