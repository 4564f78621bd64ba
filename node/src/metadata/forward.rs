//! Finding the leader: a call that only the leader can answer is answered here if this node leads, else sent to the node that does,
//! at most one hop, again and again until the caller's deadline.
//!
//! An attempt that was refused for want of the lead submitted nothing and is repeated. One whose answer was lost is repeated only
//! where repeating is harmless: a proposal is submitted at most once, because its asker must be able to trust a refusal (W11).

use std::time::Duration;

use cluster_config::error::ErrorKind;
use cluster_config::ids::NodeId;
use futures::future::BoxFuture;
use proto::convert::status::RemoteError;
use proto::v1;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::group::{Metadata, MetadataError, NotHere};
use crate::rpc::client::Lane;
use crate::rpc::deadline::remaining;

/// Marks a call that was sent on once; its receiver answers or refuses.
const KEY_FORWARDED: &str = "susui-forwarded";
/// In a refusal for want of the lead: who leads, as far as the refuser knows, 0 for nobody. Nothing was submitted.
const KEY_LEADER: &str = "susui-leader";
/// Between two attempts while nobody leads. An election takes about two seconds.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// How far a call may go, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    deadline: Instant,
    was_forwarded: bool,
    at_most_once: bool,
}

impl Route {
    /// For a call made by this process.
    pub fn within(timeout: Duration) -> Self {
        Self { deadline: Instant::now() + timeout, was_forwarded: false, at_most_once: false }
    }

    /// For a call received: its `grpc-timeout`, at most the longest a client may ask for.
    pub(crate) fn of(metadata: &MetadataMap) -> Self {
        Self { was_forwarded: metadata.contains_key(KEY_FORWARDED), ..Self::within(remaining(metadata)) }
    }

    /// The same, without repeating an attempt of unknown outcome.
    pub(crate) fn at_most_once(self) -> Self {
        Self { at_most_once: true, ..self }
    }

    pub(crate) fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// One attempt at another node.
pub(crate) struct Hop {
    pub(crate) channel: Channel,
    pub(crate) envelope: v1::Envelope,
    timeout: Duration,
}

impl Hop {
    /// Wraps a message for this attempt.
    pub(crate) fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request.metadata_mut().insert(KEY_FORWARDED, tonic::metadata::MetadataValue::from_static("1"));
        request
    }
}

impl Metadata {
    /// Answers by `here` if this node leads, else by `there` at the node that does. Errors: the leader's refusal; `Unavailable` once
    /// the deadline passed, or as soon as an outcome is unknown that must not be risked twice.
    pub(crate) async fn at_leader<'a, T>(
        &'a self,
        route: Route,
        here: impl Fn() -> BoxFuture<'a, Result<T, NotHere>> + Send + Sync,
        there: impl Fn(Hop) -> BoxFuture<'static, Result<Response<T>, Status>> + Send + Sync,
    ) -> Result<T, MetadataError> {
        let mut attempt = 0;
        let mut last = RemoteError::new(ErrorKind::Unavailable, "nobody leads");
        while !route.remaining().is_zero() {
            let (is_unknown, error) = match self.attempt(attempt, route, &here, &there).await {
                Attempt::Done(result) => return result,
                Attempt::NotLeader(error) => (false, error),
                Attempt::Unknown(error) => (true, error),
            };
            last = error;
            if is_unknown && route.at_most_once {
                break;
            }
            attempt += 1;
            tokio::time::sleep(RETRY_PAUSE.min(route.remaining())).await;
        }
        Err(no_leader(&last).into())
    }

    async fn attempt<'a, T>(
        &'a self,
        attempt: usize,
        route: Route,
        here: &(impl Fn() -> BoxFuture<'a, Result<T, NotHere>> + Send + Sync),
        there: &(impl Fn(Hop) -> BoxFuture<'static, Result<Response<T>, Status>> + Send + Sync),
    ) -> Attempt<T> {
        if self.is_voter() {
            match tokio::time::timeout(route.remaining(), here()).await {
                Ok(Ok(answer)) => return Attempt::Done(Ok(answer)),
                Ok(Err(NotHere::Failed(error))) => return Attempt::Done(Err(error)),
                Ok(Err(NotHere::NotLeader)) => {}
                Ok(Err(NotHere::Unknown)) => {
                    return Attempt::Unknown(RemoteError::new(ErrorKind::Unavailable, "the lead was lost underway"));
                }
                Err(_) => return Attempt::Unknown(RemoteError::new(ErrorKind::Unavailable, "no majority answered")),
            }
        }
        if route.was_forwarded {
            return Attempt::Done(Err(MetadataError::NotLeader));
        }
        match self.next_target(attempt) {
            Some(target) => self.try_hop(target, route.remaining(), there).await,
            None => Attempt::NotLeader(RemoteError::new(ErrorKind::Unavailable, "nobody leads")),
        }
    }

    /// The leader if it is known and not this node; a node that does not vote asks the voters in turn.
    fn next_target(&self, attempt: usize) -> Option<NodeId> {
        let this = self.peers().self_node();
        match self.leader() {
            Some(leader) => Some(leader).filter(|leader| *leader != this),
            None if self.is_voter() => None,
            None => self.voters().nth(attempt % self.voters().count().max(1)),
        }
    }

    async fn try_hop<T>(
        &self,
        target: NodeId,
        timeout: Duration,
        there: &(impl Fn(Hop) -> BoxFuture<'static, Result<Response<T>, Status>> + Send + Sync),
    ) -> Attempt<T> {
        let channel = match self.peers().channel(target, Lane::Control) {
            Ok(channel) => channel,
            Err(error) => {
                return Attempt::NotLeader(RemoteError::new(ErrorKind::Unavailable, error.to_string()));
            }
        };
        let hop = Hop { channel, envelope: self.peers().envelope(target), timeout };
        let status = match tokio::time::timeout(timeout, there(hop)).await {
            Ok(Ok(answer)) => {
                self.hint_leader(Some(target));
                return Attempt::Done(Ok(answer.into_inner()));
            }
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded(format!("no answer from node {target}")),
        };
        let named = status.metadata().get(KEY_LEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        self.hint_leader(named.filter(|leader| *leader != 0).map(NodeId));
        let error = RemoteError::from(status);
        match error.kind {
            _ if named.is_some() => Attempt::NotLeader(error),
            ErrorKind::Unavailable | ErrorKind::DeadlineExceeded => Attempt::Unknown(error),
            _ => Attempt::Done(Err(error.into())),
        }
    }

    /// A failure as a status; one for want of the lead names the leader.
    pub(crate) fn refusal(&self, error: MetadataError) -> Status {
        let is_not_leader = matches!(error, MetadataError::NotLeader);
        let mut status = Status::from(error);
        if is_not_leader {
            let leader = self.leader().map_or(0, |leader| leader.0);
            status.metadata_mut().insert(KEY_LEADER, leader.into());
        }
        status
    }
}

/// What one attempt came to.
enum Attempt<T> {
    Done(Result<T, MetadataError>),
    /// Nothing was submitted.
    NotLeader(RemoteError),
    /// It may have been submitted.
    Unknown(RemoteError),
}

fn no_leader(last: &RemoteError) -> RemoteError {
    RemoteError::new(ErrorKind::Unavailable, format!("the metadata group did not answer: {}", last.message))
        .with_hint("see that a majority of the metadata voters runs and can be reached, then try again")
}
