//! Makes the calls that [`Gather`] decides on: one stream per node and moment, one deadline over all, one answer or failure per shard.
//!
//! A stream is dropped, which resets it on the node, as soon as no shard of it is waited for any more.
//!
//! Cancel: dropping the future drops all streams.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::error::ErrorKind;
use cluster_config::ids::{NodeId, ShardId};
use cluster_config::search::{Consistency, ShardQuery, ShardTarget};
use cluster_config::seqno::SeqNo;
use futures::stream::{AbortHandle, BoxStream, SelectAll, abortable};
use futures::{StreamExt, stream};

use super::gather::{Calls, Gather, Gathered, Rules};
use super::plan::ShardPlan;
use super::session::Session;
use crate::cluster::client::{CopyTarget, NodeClient, NodeError, NodeSearch, ShardReply};
use crate::cluster::stats::NodeStats;
use crate::cluster::view::ClusterView;

/// Given back before the caller's deadline, so that the failure reaches the caller as an answer.
const REPLY_MARGIN: Duration = Duration::from_millis(5);

/// What a scatter needs besides its plan.
pub struct Scatter<'a> {
    /// The nodes.
    pub client: &'a dyn NodeClient,
    /// Told of registers that come with errors; its changes end waiting.
    pub view: &'a ClusterView,
    /// Learns from every answer.
    pub stats: &'a NodeStats,
    /// Run on every shard.
    pub queries: Arc<Vec<ShardQuery>>,
    /// How fresh answers must be.
    pub consistency: Consistency,
    /// Lowest positions, for session and strong reads.
    pub session: &'a Session,
    /// Bound for eventual reads.
    pub max_staleness: Duration,
    /// Everything ends here.
    pub deadline: Instant,
}

/// What a node's stream gives.
enum Event {
    Reply(NodeId, ShardReply),
    /// The stream is over; targets that have not answered will not.
    Ended(NodeId, BTreeSet<ShardId>, Option<NodeError>),
}

/// Streams under way.
#[derive(Default)]
struct Streams {
    events: SelectAll<BoxStream<'static, Event>>,
    open: Vec<(BTreeSet<ShardId>, AbortHandle)>,
}

impl Streams {
    fn push(&mut self, shards: BTreeSet<ShardId>, events: impl futures::Stream<Item = Event> + Send + 'static) {
        let (events, handle) = abortable(events);
        self.events.push(events.boxed());
        self.open.push((shards, handle));
    }

    /// Ends the streams that nothing is expected of any more.
    fn close_idle(&mut self, is_pending: impl Fn(ShardId) -> bool) {
        self.open.retain(|(shards, handle)| {
            let is_needed = shards.iter().any(|shard| is_pending(*shard));
            if !is_needed {
                handle.abort();
            }
            is_needed
        });
    }
}

impl Scatter<'_> {
    /// Asks every shard that `plan` names; `plan` is asked again where copies fail.
    pub async fn run(&self, plan: &(dyn Fn(Instant) -> Vec<ShardPlan> + Send + Sync)) -> Gathered {
        let rules = Rules {
            stats: self.stats,
            consistency: self.consistency,
            session: self.session,
            queries: self.queries.len(),
            deadline: self.deadline.checked_sub(REPLY_MARGIN).unwrap_or(self.deadline),
        };
        let mut changed = self.view.changes();
        let (mut gather, mut calls) = Gather::start(rules, plan, Instant::now());
        let mut streams = Streams::default();
        loop {
            self.open(calls, rules.deadline, &mut streams);
            if gather.is_done() {
                return gather.finish();
            }
            if gather.take_wants_refresh() {
                self.view.request_refresh();
            }
            calls = tokio::select! {
                biased;
                Some(event) = streams.events.next() => self.take(event, &mut gather),
                Ok(()) = changed.changed() => gather.on_view(Instant::now()),
                () = tokio::time::sleep_until(gather.next_wake().into()) => gather.on_time(Instant::now()),
            };
            streams.close_idle(|shard| gather.is_pending(shard));
        }
    }

    fn take(&self, event: Event, gather: &mut Gather<'_>) -> Calls {
        match event {
            Event::Reply(node, reply) => {
                self.learn(reply.outcome.as_ref().err());
                gather.on_reply(node, reply, Instant::now())
            }
            Event::Ended(node, unanswered, error) => {
                self.learn(error.as_ref());
                gather.on_end(node, &unanswered, error, Instant::now())
            }
        }
    }

    /// Takes over a register that came with an error: the next plan must know it.
    fn learn(&self, error: Option<&NodeError>) {
        if let Some(register) = error.and_then(|error| error.register.as_ref()) {
            self.view.learn(register);
        }
    }

    fn open(&self, calls: Calls, deadline: Instant, streams: &mut Streams) {
        for (node, targets) in calls {
            let shards = targets.iter().map(|target| target.shard).collect();
            streams.push(shards, self.call(node, targets, deadline));
        }
    }

    /// One stream to one node, as events; its end names the shards that got no reply.
    fn call(&self, node: NodeId, targets: Vec<CopyTarget>, deadline: Instant) -> BoxStream<'static, Event> {
        let unanswered: BTreeSet<ShardId> = targets.iter().map(|target| target.shard).collect();
        let lowest = |target: &CopyTarget| match self.consistency {
            Consistency::Eventual => SeqNo::ZERO,
            Consistency::Session | Consistency::Strong => {
                self.session.token(target.shard).map_or(SeqNo::ZERO, |token| token.seqno)
            }
        };
        let search = NodeSearch {
            queries: Arc::clone(&self.queries),
            targets: targets.iter().map(|target| ShardTarget { target: *target, min_seqno: lowest(target) }).collect(),
            consistency: self.consistency,
            max_staleness_ms: self.max_staleness.as_millis() as u64,
        };
        let replies = self.client.search(node, search, deadline);
        stream::unfold(Some((replies, unanswered)), move |open| async move {
            let (mut replies, mut unanswered) = open?;
            let error = match replies.next().await {
                Some(Ok(reply)) if unanswered.remove(&reply.shard) => {
                    return Some((Event::Reply(node, reply), Some((replies, unanswered))));
                }
                // A reply for a shard not asked of this stream: the node is confused, its stream is not read further.
                Some(Ok(reply)) => {
                    Some(NodeError::new(ErrorKind::Internal, format!("unexpected reply for shard {}", reply.shard)))
                }
                Some(Err(error)) => Some(error),
                None => None,
            };
            Some((Event::Ended(node, unanswered, error), None))
        })
        .boxed()
    }
}
