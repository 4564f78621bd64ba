//! Asks every shard of a plan: one stream per node, one deadline over all, one answer or failure per shard.
//!
//! A shard whose copy fails with an error that another copy may not give, or keeps silent for [`SILENCE`], is asked on its next
//! copy at once; the first good answer wins. The result is complete and honest: each planned shard is either answered or
//! has a failure that says why.
//!
//! Cancel: dropping the future drops all streams, which resets them on the nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use cluster_config::error::ErrorKind;
use cluster_config::ids::{NodeId, ShardId};
use cluster_config::search::{Consistency, ShardAnswer, ShardQuery, ShardTarget};
use cluster_config::seqno::SeqNo;
use futures::stream::{BoxStream, SelectAll};
use futures::{StreamExt, stream};

use super::plan::{Candidate, ShardPlan};
use super::session::Session;
use crate::cluster::client::{CopyTarget, NodeClient, NodeError, NodeSearch, ShardReply};
use crate::cluster::health::FailureMemory;

/// A copy silent for this long gets company: many times a search's usual duration, a small part of a usual deadline.
pub const SILENCE: Duration = Duration::from_millis(300);
/// Given back before the caller's deadline, so that the failure reaches the caller as an answer.
const REPLY_MARGIN: Duration = Duration::from_millis(5);

/// What a scatter needs besides its plan.
pub struct Scatter<'a> {
    /// The nodes.
    pub client: &'a dyn NodeClient,
    /// Noted: who broke, who answered.
    pub failures: &'a FailureMemory,
    /// Bounds how often a silent copy gets company.
    pub company: &'a CompanyBudget,
    /// Run on every shard.
    pub queries: Arc<Vec<ShardQuery>>,
    /// How fresh answers must be.
    pub consistency: Consistency,
    /// Lowest positions, for session reads.
    pub session: &'a Session,
    /// Bound for eventual reads.
    pub max_staleness: Duration,
    /// Everything ends here.
    pub deadline: Instant,
}

/// How many silent copies may get company: a small share of all requests, so that slowness by load does not double the load.
///
/// A budget of one in twenty, saved up to [`COMPANY_SAVED_MAX`]: enough for the searches that are under way when a node is cut off,
/// after which the failure memory sends the next ones elsewhere.
#[derive(Debug)]
pub struct CompanyBudget {
    thousandths: AtomicI64,
}

const COMPANY_EARNED_THOUSANDTHS: i64 = 50;
const COMPANY_SAVED_MAX: i64 = 256;

impl Default for CompanyBudget {
    fn default() -> Self {
        Self { thousandths: AtomicI64::new(COMPANY_SAVED_MAX * 1000) }
    }
}

impl CompanyBudget {
    fn earn(&self, requests: usize) {
        let earned = COMPANY_EARNED_THOUSANDTHS * requests as i64;
        let _ = self.thousandths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saved| {
            Some((saved + earned).min(COMPANY_SAVED_MAX * 1000))
        });
    }

    fn spend(&self) -> bool {
        let spent = self
            .thousandths
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saved| (saved >= 1000).then_some(saved - 1000));
        spent.is_ok()
    }
}

/// A shard without an answer.
#[derive(Clone, Debug)]
pub struct ShardFailure {
    /// The last error of its copies.
    pub error: NodeError,
    /// No copy gave an answer or an error in time.
    pub timed_out: bool,
}

/// An answered shard.
#[derive(Clone, Debug)]
pub struct ShardSuccess {
    /// One per query.
    pub answers: Vec<ShardAnswer>,
    /// Who answered.
    pub node: NodeId,
    /// The copy that answered.
    pub target: CopyTarget,
    /// Microseconds in the node's queue.
    pub queued_us: u64,
    /// Microseconds computing.
    pub service_us: u64,
}

/// All shards, answered or not.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// Answered shards.
    pub answered: BTreeMap<ShardId, ShardSuccess>,
    /// The others.
    pub failed: BTreeMap<ShardId, ShardFailure>,
    /// Calls beyond the first of each shard.
    pub retries: u64,
}

/// One shard while it is being asked.
struct Pending {
    candidates: Vec<Candidate>,
    /// Candidates asked so far: a prefix.
    asked: usize,
    /// Of those, how many may still answer.
    outstanding: usize,
    asked_at: Instant,
    last_error: Option<NodeError>,
}

/// What a node's stream gives.
enum Event {
    Reply(NodeId, ShardReply),
    /// The stream is over; targets that have not answered will not.
    Ended(NodeId, Vec<ShardId>, Option<NodeError>),
}

impl Scatter<'_> {
    /// Runs the plan to its end.
    pub async fn run(&self, plan: Vec<ShardPlan>) -> Gathered {
        let mut gathered = Gathered::default();
        let mut pending: BTreeMap<ShardId, Pending> = BTreeMap::new();
        for shard in plan {
            let now = Instant::now();
            let candidates = shard.candidates;
            let waiting = Pending { candidates, asked: 0, outstanding: 0, asked_at: now, last_error: None };
            pending.insert(shard.shard, waiting);
        }
        let deadline = self.deadline.checked_sub(REPLY_MARGIN).unwrap_or(self.deadline);
        let mut streams: SelectAll<BoxStream<'static, Event>> = SelectAll::new();
        let first: Vec<ShardId> = pending.keys().copied().collect();
        self.company.earn(first.len());
        self.ask_next(&first, &mut pending, &mut streams, &mut gathered);

        while !pending.is_empty() {
            let silent_at = pending
                .values()
                .filter(|shard| shard.asked < shard.candidates.len())
                .map(|shard| shard.asked_at + SILENCE)
                .min();
            let wake = silent_at.map_or(deadline, |at| at.min(deadline));
            tokio::select! {
                biased;
                Some(event) = streams.next() => {
                    let retry = self.take(event, &mut pending, &mut gathered);
                    self.ask_next(&retry, &mut pending, &mut streams, &mut gathered);
                }
                () = tokio::time::sleep_until(wake.into()) => {
                    if Instant::now() >= deadline {
                        time_out(&mut pending, &mut gathered);
                        break;
                    }
                    let silent = self.silent(&mut pending);
                    self.ask_next(&silent, &mut pending, &mut streams, &mut gathered);
                }
            }
        }
        gathered
    }

    /// Takes one event; gives the shards to be asked elsewhere.
    fn take(&self, event: Event, pending: &mut BTreeMap<ShardId, Pending>, gathered: &mut Gathered) -> Vec<ShardId> {
        match event {
            Event::Reply(node, reply) => {
                let ShardReply { shard: shard_id, outcome, queued_us, service_us } = reply;
                let Some(shard) = pending.get_mut(&shard_id) else { return Vec::new() };
                shard.outstanding = shard.outstanding.saturating_sub(1);
                let asked = &shard.candidates[..shard.asked];
                let Some(candidate) = asked.iter().find(|candidate| candidate.node == node).copied() else {
                    return Vec::new();
                };
                match outcome.and_then(|answers| self.check(shard_id, answers)) {
                    Ok(answers) => {
                        self.failures.note_success(node);
                        let success = ShardSuccess { answers, node, target: candidate.target, queued_us, service_us };
                        gathered.answered.insert(shard_id, success);
                        pending.remove(&shard_id);
                        Vec::new()
                    }
                    Err(error) => {
                        shard.last_error = Some(error);
                        vec![shard_id]
                    }
                }
            }
            Event::Ended(node, unanswered, error) => {
                if error.as_ref().is_some_and(|error| error.disconnected) {
                    self.failures.note_failure(node);
                }
                let error = error.unwrap_or_else(|| {
                    NodeError::new(ErrorKind::Unavailable, "the node ended the stream without an answer for this shard")
                });
                let mut retry = Vec::new();
                for shard in unanswered {
                    if let Some(waiting) = pending.get_mut(&shard) {
                        waiting.outstanding = waiting.outstanding.saturating_sub(1);
                        waiting.last_error = Some(error.clone());
                        retry.push(shard);
                    }
                }
                retry
            }
        }
    }

    /// An answer must fit the question and, for a session, stand at or after its token.
    fn check(&self, shard: ShardId, answers: Vec<ShardAnswer>) -> Result<Vec<ShardAnswer>, NodeError> {
        if answers.len() != self.queries.len() {
            let text = format!("{} answers to {} queries", answers.len(), self.queries.len());
            return Err(NodeError::new(ErrorKind::Internal, text));
        }
        let (Some(token), Some(answer)) = (self.session.token(shard), answers.first()) else { return Ok(answers) };
        if self.consistency == Consistency::Eventual {
            return Ok(answers);
        }
        if answer.position.lineage > token.lineage {
            let text = format!("shard {shard} was recovered with data loss after this session token was issued");
            return Err(NodeError::new(ErrorKind::TokenVoid, text));
        }
        if (answer.position.lineage, answer.position.applied) < (token.lineage, token.seqno) {
            let text = format!("shard {shard} has not yet applied what the session has seen");
            return Err(NodeError::new(ErrorKind::Unavailable, text));
        }
        Ok(answers)
    }

    /// Shards whose asked copies have been silent too long and whose next copy may be asked within the budget.
    fn silent(&self, pending: &mut BTreeMap<ShardId, Pending>) -> Vec<ShardId> {
        let mut silent = Vec::new();
        for (shard, waiting) in pending.iter_mut() {
            if waiting.asked == waiting.candidates.len() || waiting.asked_at.elapsed() < SILENCE {
                continue;
            }
            if !self.company.spend() {
                // Everything is slow: more requests would not make it faster. Looked at again after as long.
                waiting.asked_at = Instant::now();
                continue;
            }
            if let Some(candidate) = waiting.asked.checked_sub(1).and_then(|last| waiting.candidates.get(last)) {
                self.failures.note_failure(candidate.node);
            }
            silent.push(*shard);
        }
        silent
    }

    /// Asks the next copy of each of `shards`, grouped into one stream per node. A shard with no copy left, none outstanding,
    /// or with an error that every copy would give, fails.
    fn ask_next(
        &self,
        shards: &[ShardId],
        pending: &mut BTreeMap<ShardId, Pending>,
        streams: &mut SelectAll<BoxStream<'static, Event>>,
        gathered: &mut Gathered,
    ) {
        let mut calls: BTreeMap<NodeId, Vec<CopyTarget>> = BTreeMap::new();
        for shard in shards {
            let Some(waiting) = pending.get_mut(shard) else { continue };
            let is_final = waiting.last_error.as_ref().is_some_and(|error| error.kind.is_deterministic());
            match waiting.candidates.get(waiting.asked) {
                Some(candidate) if !is_final => {
                    gathered.retries += u64::from(waiting.asked > 0);
                    waiting.asked += 1;
                    waiting.outstanding += 1;
                    waiting.asked_at = Instant::now();
                    calls.entry(candidate.node).or_default().push(candidate.target);
                }
                _ if waiting.outstanding > 0 && !is_final => {}
                _ => {
                    let error = waiting.last_error.take().unwrap_or_else(|| {
                        NodeError::new(ErrorKind::Unavailable, format!("shard {shard} has no copy that may answer"))
                    });
                    gathered.failed.insert(*shard, ShardFailure { error, timed_out: false });
                    pending.remove(shard);
                }
            }
        }
        for (node, targets) in calls {
            streams.push(self.call(node, targets));
        }
    }

    /// One stream to one node, as events; its end names the shards that got no reply.
    fn call(&self, node: NodeId, targets: Vec<CopyTarget>) -> BoxStream<'static, Event> {
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
        let replies = self.client.search(node, search, self.deadline);
        stream::unfold((replies, unanswered, false), move |(mut replies, mut unanswered, ended)| async move {
            if ended {
                return None;
            }
            match replies.next().await {
                Some(Ok(reply)) if unanswered.remove(&reply.shard) => {
                    Some((Event::Reply(node, reply), (replies, unanswered, false)))
                }
                // A reply for a shard not asked of this stream: the node is confused, its stream is not read further.
                Some(Ok(reply)) => {
                    let error =
                        NodeError::new(ErrorKind::Internal, format!("unexpected reply for shard {}", reply.shard));
                    let left = std::mem::take(&mut unanswered).into_iter().collect();
                    Some((Event::Ended(node, left, Some(error)), (replies, unanswered, true)))
                }
                Some(Err(error)) => {
                    let left = std::mem::take(&mut unanswered).into_iter().collect();
                    Some((Event::Ended(node, left, Some(error)), (replies, unanswered, true)))
                }
                None => {
                    let left = std::mem::take(&mut unanswered).into_iter().collect();
                    Some((Event::Ended(node, left, None), (replies, unanswered, true)))
                }
            }
        })
        .boxed()
    }
}

/// The deadline passed: whoever is still waited for has timed out.
fn time_out(pending: &mut BTreeMap<ShardId, Pending>, gathered: &mut Gathered) {
    for (shard, waiting) in std::mem::take(pending) {
        let text = match waiting.last_error {
            Some(error) => format!("no answer before the deadline; a copy said: {error}"),
            None => "no answer before the deadline".to_owned(),
        };
        let error = NodeError::new(ErrorKind::DeadlineExceeded, text);
        gathered.failed.insert(shard, ShardFailure { error, timed_out: true });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn company_is_a_share_of_the_requests() {
        let budget = CompanyBudget::default();
        let at_first = std::iter::repeat_with(|| budget.spend()).take_while(|granted| *granted).count();
        assert_eq!(at_first as i64, COMPANY_SAVED_MAX);
        budget.earn(100);
        assert_eq!(std::iter::repeat_with(|| budget.spend()).take_while(|granted| *granted).count(), 5);
    }
}
