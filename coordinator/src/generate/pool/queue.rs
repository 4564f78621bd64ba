//! Who waits, in a fair order: each tenant's requests among themselves as they came, tenants in turn. Start-time fair queueing with
//! equal shares; pure.

use std::collections::BTreeMap;

/// A place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket {
    /// Round in which it is this request's turn.
    round: u64,
    number: u64,
}

/// The queue.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    waiting: BTreeMap<Ticket, (String, T)>,
    /// The last round given to each tenant that waits.
    last_round: BTreeMap<String, u64>,
    /// The round that was served last.
    round: u64,
    next_number: u64,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), last_round: BTreeMap::new(), round: 0, next_number: 0 }
    }
}

impl<T> FairQueue<T> {
    /// Requests that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Puts a request behind its tenant's others.
    pub(super) fn push(&mut self, tenant: &str, request: T) -> Ticket {
        let last = self.last_round.get(tenant).copied().unwrap_or(0);
        let round = last.max(self.round) + 1;
        self.last_round.insert(tenant.to_owned(), round);
        let ticket = Ticket { round, number: self.next_number };
        self.next_number += 1;
        self.waiting.insert(ticket, (tenant.to_owned(), request));
        ticket
    }

    /// Takes one out, served or not.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let (tenant, request) = self.waiting.remove(&ticket)?;
        if !self.waiting.values().any(|(other, _)| *other == tenant) {
            self.last_round.remove(&tenant);
        }
        if self.waiting.is_empty() {
            self.round = 0;
        }
        Some(request)
    }

    /// Takes one out that is served now.
    pub(super) fn serve(&mut self, ticket: Ticket) -> Option<T> {
        self.round = self.round.max(ticket.round);
        self.remove(ticket)
    }

    /// Tickets and requests in the order of their turns.
    pub(super) fn in_order(&self) -> impl Iterator<Item = (Ticket, &T)> {
        self.waiting.iter().map(|(ticket, (_, request))| (*ticket, request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(queue: &mut FairQueue<&'static str>) -> Vec<&'static str> {
        let mut served = Vec::new();
        loop {
            let first = queue.in_order().next().map(|(ticket, _)| ticket);
            let Some(ticket) = first else { return served };
            served.extend(queue.serve(ticket));
        }
    }

    #[test]
    fn a_tenant_with_many_does_not_keep_another_waiting() {
        let mut queue = FairQueue::default();
        for request in ["a1", "a2", "a3"] {
            queue.push("a", request);
        }
        queue.push("b", "b1");
        queue.push("c", "c1");
        queue.push("b", "b2");
        assert_eq!(drain(&mut queue), ["a1", "b1", "c1", "a2", "b2", "a3"]);
        assert_eq!((queue.last_round.len(), queue.round), (0, 0), "nothing is kept of those that are gone");
    }

    #[test]
    fn one_who_comes_late_does_not_get_back_the_turns_it_did_not_want() {
        let mut queue = FairQueue::default();
        for request in ["a1", "a2", "a3", "a4"] {
            queue.push("a", request);
        }
        for _ in 0..2 {
            let (ticket, _) = queue.in_order().next().expect("waits");
            queue.serve(ticket);
        }
        queue.push("b", "b1");
        queue.push("b", "b2");
        assert_eq!(drain(&mut queue), ["a3", "b1", "a4", "b2"]);
    }

    #[test]
    fn one_who_leaves_frees_its_place() {
        let mut queue = FairQueue::default();
        let first = queue.push("a", "a1");
        queue.push("a", "a2");
        assert_eq!(queue.remove(first), Some("a1"));
        assert_eq!(queue.remove(first), None);
        assert_eq!(drain(&mut queue), ["a2"]);
    }
}
