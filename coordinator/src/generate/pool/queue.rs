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
    /// Tenants that wait.
    tenants: BTreeMap<String, Turns>,
    /// The round that was served last.
    round: u64,
    next_number: u64,
}

/// What is known of a tenant that waits.
#[derive(Debug, Default)]
struct Turns {
    waiting: usize,
    /// The last round that was given to it.
    last_round: u64,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), tenants: BTreeMap::new(), round: 0, next_number: 0 }
    }
}

impl<T> FairQueue<T> {
    /// Requests that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Puts a request behind its tenant's others.
    pub(super) fn push(&mut self, tenant: &str, request: T) -> Ticket {
        let turns = self.tenants.entry(tenant.to_owned()).or_default();
        let round = turns.last_round.max(self.round) + 1;
        *turns = Turns { waiting: turns.waiting + 1, last_round: round };
        let ticket = Ticket { round, number: self.next_number };
        self.next_number += 1;
        self.waiting.insert(ticket, (tenant.to_owned(), request));
        ticket
    }

    /// Takes one out, served or not.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let (tenant, request) = self.waiting.remove(&ticket)?;
        if let Some(turns) = self.tenants.get_mut(&tenant) {
            turns.waiting -= 1;
            if turns.waiting == 0 {
                self.tenants.remove(&tenant);
            }
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

    /// Takes one out of a full queue for a request of `tenant`: the newest of the tenant with the most, so that nobody fills the queue for
    /// all. `None`: with its request `tenant` would itself be that one, and the request is the newest.
    pub(super) fn make_room(&mut self, tenant: &str) -> Option<T> {
        let own = self.tenants.get(tenant).map_or(0, |turns| turns.waiting) + 1;
        let (most, _) = self.tenants.iter().max_by_key(|(_, turns)| turns.waiting).filter(|(_, t)| t.waiting > own)?;
        let of_most = self.waiting.iter().filter(|(_, (tenant, _))| tenant == most);
        let newest = of_most.map(|(ticket, _)| *ticket).max_by_key(|ticket| ticket.number)?;
        self.remove(newest)
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
        assert_eq!((queue.tenants.len(), queue.round), (0, 0), "nothing is kept of those that are gone");
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

    #[test]
    fn in_a_full_queue_the_newest_of_whoever_has_most_gives_way() {
        // Who waits, in the order they came; who comes; who gives way for it, `None`: nobody.
        let cases: [(&[&str], &str, Option<&str>); 7] = [
            (&["a1", "a2", "a3"], "b", Some("a3")),
            (&["a1", "a2", "a3"], "a", None),
            (&["a1", "b1", "a2", "b2", "a3"], "c", Some("a3")),
            (&["a1", "a2", "a3", "b1"], "b", Some("a3")),
            (&["a1", "a2", "b1"], "b", None),
            (&["a1", "b1"], "c", None),
            (&[], "a", None),
        ];
        for (waiting, comes, gone) in cases {
            let mut queue = FairQueue::default();
            for request in waiting {
                queue.push(&request[..1], *request);
            }
            assert_eq!(queue.make_room(comes), gone, "{waiting:?} {comes}");
            assert_eq!(queue.len() + usize::from(gone.is_some()), waiting.len());
        }
    }

    #[test]
    fn however_many_one_tenant_sends_another_keeps_its_share() {
        const LENGTH: usize = 8;
        let mut queue = FairQueue::default();
        let mut refused = [0, 0];
        for number in 0..100 {
            // One of nine is b's.
            let (index, tenant) = if number % 9 == 8 { (1, "b") } else { (0, "a") };
            if queue.len() < LENGTH || queue.make_room(tenant).is_some() {
                queue.push(tenant, tenant);
            } else {
                refused[index] += 1;
            }
        }
        let of_b = queue.in_order().filter(|(_, tenant)| **tenant == "b").count();
        assert_eq!((of_b, queue.len()), (LENGTH / 2, LENGTH));
        assert_eq!(refused[1], 11 - LENGTH / 2, "only what is beyond its half");
    }
}
