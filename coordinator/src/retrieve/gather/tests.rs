//! Scatters over simulated nodes on simulated time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use cluster_config::cluster_state::{ClusterState, Liveness};
use cluster_config::ids::{CollectionId, Lineage};
use cluster_config::search::CopyPosition;
use cluster_config::seqno::SeqNo;
use proptest::prelude::*;

use super::*;
use crate::cluster::health::{EJECTION, Standing};
use crate::cluster::hedge::SAVED_MAX;
use crate::cluster::twin::test_state;
use crate::retrieve::plan::{PlanOptions, drift_unchosen, plan_read};

/// How a simulated node treats a sub-request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Conduct {
    /// Answers after so many milliseconds.
    Answers(u64),
    /// Says so after a millisecond.
    Fails(ErrorKind),
    /// Its port refuses.
    Refuses,
    /// Nothing comes.
    Silent,
}

/// Changes the state when so much of a search has passed.
type Change = (Duration, fn(&mut ClusterState));

struct World {
    state: ClusterState,
    collection: CollectionId,
    stats: NodeStats,
    now: Instant,
    consistency: Consistency,
    session: Session,
    timeout: Duration,
    change: Option<Change>,
    asked: BTreeMap<NodeId, u64>,
    sent: u64,
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

impl World {
    fn new(nodes: u64, shards: u32, copies: u64) -> Self {
        let (state, collection) = test_state(nodes, shards, copies);
        let stats = NodeStats::default();
        Self {
            state,
            collection,
            now: Instant::now(),
            stats,
            consistency: Consistency::Eventual,
            session: Session::default(),
            timeout: ms(5000),
            change: None,
            asked: BTreeMap::new(),
            sent: 0,
        }
    }

    fn standing(&self, node: u64) -> Standing {
        self.stats.lock().standing(NodeId(node), self.now)
    }

    fn asked(&self, node: u64) -> u64 {
        self.asked.get(&NodeId(node)).copied().unwrap_or(0)
    }

    /// One search; `conduct` is asked for each sub-request with its number. Gives the result and how long it took.
    fn search(&mut self, conduct: impl Fn(NodeId, u64) -> Conduct) -> (Gathered, Duration) {
        let began = self.now;
        let state = parking_lot::Mutex::new(self.state.clone());
        let plan = |now| {
            let options = PlanOptions { consistency: self.consistency, prefer_copy: None, zone: None, random: 0, now };
            let mut board = self.stats.lock();
            let plans = plan_read(&state.lock(), self.collection, &options, &board);
            drift_unchosen(&plans, &mut board, now);
            plans
        };
        let rules = Rules {
            stats: &self.stats,
            consistency: self.consistency,
            session: &self.session,
            queries: 1,
            deadline: began + self.timeout,
        };
        let (mut gather, mut calls) = Gather::start(rules, &plan, began);
        let mut now = began;
        let mut events: BinaryHeap<Reverse<(Instant, u64, NodeId, ShardId)>> = BinaryHeap::new();
        let mut conducts: BTreeMap<u64, (Conduct, CopyTarget)> = BTreeMap::new();
        let mut change = self.change.take();
        loop {
            for (node, targets) in std::mem::take(&mut calls) {
                for target in targets {
                    self.sent += 1;
                    *self.asked.entry(node).or_default() += 1;
                    let conduct = conduct(node, self.sent);
                    conducts.insert(self.sent, (conduct, target));
                    let after = match conduct {
                        Conduct::Answers(count) => ms(count),
                        Conduct::Fails(_) | Conduct::Refuses => ms(1),
                        Conduct::Silent => continue,
                    };
                    events.push(Reverse((now + after, self.sent, node, target.shard)));
                }
            }
            if gather.is_done() {
                break;
            }
            let wake = gather.next_wake();
            if let Some((after, apply)) = change
                && began + after <= wake.min(events.peek().map_or(wake, |event| event.0.0))
            {
                now = began + after;
                apply(&mut state.lock());
                change = None;
                calls = gather.on_view(now);
                continue;
            }
            match events.peek().copied() {
                Some(Reverse((at, number, node, shard))) if at <= wake => {
                    events.pop();
                    now = at;
                    let (conduct, target) = conducts[&number];
                    calls = match conduct {
                        Conduct::Refuses => {
                            let error = NodeError::disconnected("connection refused");
                            gather.on_end(node, &BTreeSet::from([shard]), Some(error), now)
                        }
                        Conduct::Fails(kind) => {
                            let outcome = Err(NodeError::new(kind, "simulated"));
                            gather.on_reply(node, ShardReply { shard, outcome, queued_us: 0, service_us: 0 }, now)
                        }
                        Conduct::Answers(_) | Conduct::Silent => {
                            let position = CopyPosition {
                                copy: target.copy,
                                lineage: target.lineage,
                                applied: SeqNo(10),
                                ..CopyPosition::default()
                            };
                            let outcome = Ok(vec![ShardAnswer { position, ..ShardAnswer::default() }]);
                            gather.on_reply(node, ShardReply { shard, outcome, queued_us: 0, service_us: 500 }, now)
                        }
                    };
                }
                _ => {
                    now = wake;
                    calls = gather.on_time(now);
                }
            }
        }
        let gathered = gather.finish();
        self.state = state.into_inner();
        self.now = now;
        (gathered, now - began)
    }

    /// `count` searches, `pause` apart; gives the time each took, longest last. Every one must be complete.
    fn searches(&mut self, count: u64, pause: Duration, conduct: impl Fn(NodeId, u64) -> Conduct) -> Vec<Duration> {
        let mut took: Vec<Duration> = (0..count)
            .map(|_| {
                let (gathered, took) = self.search(&conduct);
                assert!(gathered.failed.is_empty(), "{:?}", gathered.failed);
                self.now += pause;
                took
            })
            .collect();
        took.sort();
        took
    }
}

fn healthy(_: NodeId, _: u64) -> Conduct {
    Conduct::Answers(2)
}

#[test]
fn a_slow_node_is_avoided() {
    let mut world = World::new(3, 6, 2);
    let slow = |node, _| if node == NodeId(2) { Conduct::Answers(100) } else { Conduct::Answers(2) };
    let took = world.searches(400, ms(10), slow);
    let share = world.asked(2) as f64 / world.sent as f64;
    assert!(share < 0.05, "{share} of the sub-requests went to the slow node");
    assert!(took[took.len() * 9 / 10] <= ms(10), "{took:?}");
}

#[test]
fn a_hedge_wins_over_a_hiccup_and_stays_within_the_budget() {
    let mut world = World::new(3, 6, 2);
    world.searches(50, ms(5), healthy);
    let before = (world.sent, world.stats.lock().counters());
    // One sub-request in fifty takes 150 ms, on any node.
    let hiccup = |_, number| if number % 50 == 0 { Conduct::Answers(150) } else { Conduct::Answers(2) };
    let took = world.searches(500, ms(5), hiccup);
    let counters = world.stats.lock().counters();
    let (hedges, requests) = (counters.hedges_sent - before.1.hedges_sent, world.sent - before.0);
    assert!(hedges <= SAVED_MAX + requests / 20, "{hedges} hedges of {requests}");
    assert!(counters.hedges_won > 20, "{counters:?}");
    assert!(took[took.len() * 99 / 100] < ms(50), "{took:?}");
    assert_eq!(counters.ejections, 0, "slow is not silent");
}

#[test]
fn when_everything_is_slow_hedges_stay_a_twentieth() {
    let mut world = World::new(3, 6, 2);
    world.searches(50, ms(5), healthy);
    let before = world.stats.lock().counters();
    world.searches(100, ms(5), |_, _| Conduct::Answers(120));
    let counters = world.stats.lock().counters();
    let (hedges, requests) = (counters.hedges_sent - before.hedges_sent, counters.requests - before.requests);
    assert!(hedges > 0 && hedges <= SAVED_MAX + requests / 20, "{hedges} of {requests}");
    assert_eq!(requests, 100 * 6 + hedges, "no other doubling");
}

#[test]
fn a_silent_node_is_left_after_200_ms_and_ejected_without_spending_hedges() {
    let mut world = World::new(3, 18, 2);
    let frozen = |node, _| if node == NodeId(2) { Conduct::Silent } else { Conduct::Answers(2) };
    let (gathered, took) = world.search(frozen);
    assert!(gathered.failed.is_empty());
    assert!(took >= SILENCE && took < SILENCE + ms(10), "{took:?}");
    let rest = world.searches(20, ms(10), frozen);
    assert!(rest.last().is_some_and(|worst| *worst < SILENCE + ms(10)), "{rest:?}");
    assert_eq!(world.standing(2), Standing::Ejected);
    let counters = world.stats.lock().counters();
    assert_eq!((counters.hedges_sent, counters.ejections), (0, 1), "its retries are no hedges");
    let asked = world.asked(2);
    world.searches(20, ms(10), frozen);
    assert_eq!(world.asked(2), asked, "not asked while ejected");
}

#[test]
fn a_coordinator_that_slept_blames_nobody_for_its_silence() {
    let world = World::new(3, 6, 2);
    let began = world.now;
    let options =
        PlanOptions { consistency: Consistency::Eventual, prefer_copy: None, zone: None, random: 0, now: began };
    let plan = |_: Instant| plan_read(&world.state, world.collection, &options, &world.stats.lock());
    let session = Session::default();
    let rules = Rules {
        stats: &world.stats,
        consistency: Consistency::Eventual,
        session: &session,
        queries: 1,
        deadline: began + ms(5000),
    };
    let (mut gather, _) = Gather::start(rules, &plan, began);
    let woken = began + 2 * SILENCE;
    assert!(gather.on_time(woken).is_empty(), "the answers may be here already");
    let excused_until = gather.next_wake();
    assert!(excused_until > woken && excused_until < woken + SILENCE);
    // Once only: whoever has not answered by now is silent, however late this process is again.
    assert_eq!(gather.on_time(excused_until + 2 * SILENCE).values().map(Vec::len).sum::<usize>(), 6);
}

#[test]
fn an_ejected_node_gets_one_trial_and_comes_back() {
    let mut world = World::new(3, 18, 2);
    let frozen = |node, _| if node == NodeId(2) { Conduct::Silent } else { Conduct::Answers(2) };
    world.searches(5, ms(10), frozen);
    assert_eq!(world.standing(2), Standing::Ejected);
    world.now += EJECTION;
    let asked = world.asked(2);
    world.search(frozen);
    assert_eq!(world.asked(2), asked + 1, "one shard takes the risk");
    world.now += EJECTION;
    assert_eq!(world.standing(2), Standing::Ejected, "the second time is longer");
    world.now += EJECTION;
    world.search(healthy);
    assert_eq!(world.standing(2), Standing::Good);
    let asked = world.asked(2);
    world.searches(20, ms(10), healthy);
    assert!(world.asked(2) > asked + 20);
}

#[test]
fn the_last_copy_is_asked_however_ill_its_node() {
    let mut world = World::new(1, 4, 1);
    let (gathered, _) = world.search(|_, _| Conduct::Refuses);
    assert_eq!(gathered.failed.len(), 4);
    assert_eq!(world.standing(1), Standing::Ejected);
    world.searches(3, ms(1), healthy);
    assert_eq!(world.standing(1), Standing::Good);
}

#[test]
fn an_overloaded_node_is_passed_by_and_counted_to_the_budget() {
    let mut world = World::new(3, 6, 2);
    let busy = |node, _| if node == NodeId(2) { Conduct::Fails(ErrorKind::Overloaded) } else { Conduct::Answers(2) };
    world.searches(200, ms(10), busy);
    let counters = world.stats.lock().counters();
    assert_eq!((counters.hedges_sent, counters.ejections), (0, 0));
    // Everything is: each shard is tried a bounded number of times and the caller is told.
    let before = world.sent;
    let (gathered, _) = world.search(|_, _| Conduct::Fails(ErrorKind::Overloaded));
    assert_eq!(gathered.failed.len(), 6);
    assert!(gathered.failed.values().all(|failure| failure.error.kind == ErrorKind::Overloaded));
    assert!(world.sent - before <= 6 * (u64::from(EVENTUAL_LAPS_MAX) + 1), "{}", world.sent - before);
}

#[test]
fn errors_that_every_copy_would_give_are_not_asked_for_twice() {
    for (kind, timed_out) in [(ErrorKind::InvalidArgument, false), (ErrorKind::DeadlineExceeded, true)] {
        let mut world = World::new(3, 3, 3);
        let (gathered, took) = world.search(|_, _| Conduct::Fails(kind));
        assert!(gathered.failed.values().all(|f| (f.error.kind, f.timed_out) == (kind, timed_out)));
        assert_eq!((world.sent, took), (3, ms(1)));
    }
    let mut world = World::new(3, 3, 3);
    let (gathered, _) = world.search(|_, number| match number {
        0..=3 => Conduct::Fails(ErrorKind::Unavailable),
        _ => Conduct::Answers(2),
    });
    assert!(gathered.failed.is_empty());
    assert_eq!((world.sent, gathered.retries, gathered.laps), (6, 3, 0), "others are asked elsewhere at once");
}

#[test]
fn a_session_read_that_meets_a_lagging_copy_goes_to_the_primary() {
    let mut world = World::new(3, 1, 3);
    world.consistency = Consistency::Session;
    let group = world.state.shards.values_mut().next().expect("one");
    // Of equal copies the one of the lowest number goes first; let the primary be the last.
    group.primary.as_mut().expect("has one").copy = *group.in_sync.last().expect("three");
    let (shard, primary) = (group.shard, group.primary_node().expect("has one"));
    world.session.raise(shard, Lineage(1), SeqNo(10));
    let lag = |node, _| if node == primary { Conduct::Answers(2) } else { Conduct::Fails(ErrorKind::Unavailable) };
    for _ in 0..10 {
        let sent = world.sent;
        let (gathered, _) = world.search(lag);
        assert_eq!(gathered.answered[&shard].node, primary);
        assert_eq!(world.sent, sent + 2);
    }
    assert_eq!(world.stats.lock().counters().ejections, 0, "lag is no illness");
    // A token ahead of every copy is waited for until the deadline.
    world.session.raise(shard, Lineage(1), SeqNo(11));
    world.timeout = ms(900);
    let (gathered, took) = world.search(healthy);
    assert_eq!(gathered.failed[&shard].error.kind, ErrorKind::Unavailable);
    assert!(took > ms(500), "{took:?}");
}

#[test]
fn a_token_of_an_older_lineage_is_void_at_once_and_one_of_a_newer_waits_for_the_state() {
    let mut world = World::new(3, 1, 3);
    let shard = *world.state.shards.keys().next().expect("one");
    world.consistency = Consistency::Session;
    world.session.raise(shard, Lineage(2), SeqNo(1));
    let recovered = |state: &mut ClusterState| {
        state.shards.values_mut().for_each(|group| (group.lineage, group.version) = (Lineage(2), group.version + 1));
    };
    world.change = Some((ms(100), recovered));
    let (gathered, took) = world.search(healthy);
    assert_eq!((gathered.answered.len(), took), (1, ms(102)));

    world.session = Session::default();
    world.session.raise(shard, Lineage(1), SeqNo(1));
    let sent = world.sent;
    let (gathered, took) = world.search(healthy);
    assert_eq!(gathered.failed[&shard].error.kind, ErrorKind::TokenVoid);
    assert!(!gathered.failed[&shard].error.hint.is_empty());
    assert_eq!((world.sent, took), (sent, Duration::ZERO));
    world.consistency = Consistency::Eventual;
    assert_eq!(world.search(healthy).0.answered.len(), 1, "eventual reads do not look at the token");
}

#[test]
fn a_strong_read_follows_the_primary() {
    let mut world = World::new(2, 1, 2);
    world.consistency = Consistency::Strong;
    let fail_over = |state: &mut ClusterState| {
        for group in state.shards.values_mut() {
            let other = group.in_sync.iter().copied().find(|copy| Some(*copy) != group.primary_copy());
            group.primary.as_mut().expect("has one").copy = other.expect("two copies");
            group.version += 1;
        }
    };
    let old = world.state.shards.values().next().and_then(|group| group.primary_node()).expect("has one");
    world.change = Some((ms(700), fail_over));
    let (gathered, took) = world.search(|node, _| if node == old { Conduct::Silent } else { Conduct::Answers(2) });
    assert_eq!((gathered.answered.len(), took, world.sent), (1, ms(702), 2));
}

#[test]
fn a_red_shard_fails_fast() {
    let mut world = World::new(3, 3, 2);
    for node in [1, 2] {
        world.state.nodes.get_mut(&NodeId(node)).expect("there").liveness = Liveness::Dead;
    }
    for group in world.state.shards.values_mut() {
        group.primary = None;
    }
    let (gathered, took) =
        world.search(|node, _| if node == NodeId(3) { Conduct::Answers(2) } else { Conduct::Silent });
    assert_eq!((gathered.answered.len(), gathered.failed.len()), (2, 1));
    assert!(took <= 2 * SILENCE, "{took:?}");
    assert!(gathered.failed.values().all(|failure| !failure.timed_out));
}

fn conducts() -> impl Strategy<Value = Vec<Conduct>> {
    let conduct = prop_oneof![
        4 => (0u64..300).prop_map(Conduct::Answers),
        1 => Just(Conduct::Silent),
        1 => Just(Conduct::Refuses),
        1 => Just(Conduct::Fails(ErrorKind::Unavailable)),
        1 => Just(Conduct::Fails(ErrorKind::Overloaded)),
        1 => Just(Conduct::Fails(ErrorKind::NotPrimary)),
        1 => Just(Conduct::Fails(ErrorKind::Internal)),
        1 => Just(Conduct::Fails(ErrorKind::DeadlineExceeded)),
    ];
    proptest::collection::vec(conduct, 1..40)
}

proptest! {
    /// Whatever nodes do: every shard is answered or failed, in time, and no call stays on the board.
    #[test]
    fn every_scatter_ends_complete_and_in_time(
        conducts in conducts(), consistency in 0usize..3, searches in 1usize..6, timeout_ms in 1u64..3000,
    ) {
        let mut world = World::new(4, 5, 3);
        world.consistency = [Consistency::Eventual, Consistency::Session, Consistency::Strong][consistency];
        world.timeout = ms(timeout_ms);
        for _ in 0..searches {
            let (gathered, took) = world.search(|_, number| conducts[number as usize % conducts.len()]);
            prop_assert_eq!(gathered.answered.len() + gathered.failed.len(), 5);
            prop_assert!(took <= world.timeout);
            let board = world.stats.lock();
            prop_assert!((1..=4).all(|node| board.outstanding(NodeId(node)) == 0));
            let counters = board.counters();
            prop_assert!(counters.hedges_sent <= SAVED_MAX + counters.requests / 20);
        }
    }

    /// A gather that is dropped half-way leaves nothing on the board.
    #[test]
    fn a_caller_that_leaves_leaves_nothing(shards in 1u32..6, due in any::<bool>()) {
        let world = World::new(3, shards, 2);
        let now = world.now;
        if due {
            let mut board = world.stats.lock();
            (0..5).for_each(|_| board.note_failure(NodeId(1), now, false));
        }
        let now = now + if due { EJECTION } else { Duration::ZERO };
        let standing = world.stats.lock().standing(NodeId(1), now);
        let options = PlanOptions { consistency: Consistency::Eventual, prefer_copy: None, zone: None, random: 0, now };
        let plan = |_: Instant| plan_read(&world.state, world.collection, &options, &world.stats.lock());
        let session = Session::default();
        let rules = Rules {
            stats: &world.stats, consistency: Consistency::Eventual, session: &session, queries: 1, deadline: now + ms(1000),
        };
        let (gather, calls) = Gather::start(rules, &plan, now);
        prop_assert_eq!(calls.values().map(Vec::len).sum::<usize>(), shards as usize);
        drop(gather);
        let board = world.stats.lock();
        prop_assert!((1..=3).all(|node| board.outstanding(NodeId(node)) == 0));
        prop_assert_eq!(board.standing(NodeId(1), now), standing);
    }
}
