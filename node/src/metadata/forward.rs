//! Finding the leader: a call that only the leader can answer is answered here if this node leads, else sent to the node that does,
//! at most one hop, again and again until the caller's deadline.
//!
//! Every such call is idempotent or a compare-and-set, so one whose answer was lost may be repeated.

use std::time::Duration;

use cluster_config::error::ErrorKind;
use cluster_config::ids::NodeId;
use cluster_config::limits;
use futures::future::BoxFuture;
use proto::convert::status::RemoteError;
use proto::v1;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::group::{Metadata, MetadataError, NotHere};
use crate::rpc::client::Lane;

/// Marks a call that was sent on once; its receiver answers or refuses.
const KEY_FORWARDED: &str = "susui-forwarded";
/// In a refusal: who leads, as far as the refuser knows.
const KEY_LEADER: &str = "susui-leader";
/// Between two attempts while nobody leads. An election takes about two seconds.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// How far a call may go, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    deadline: Instant,
    was_forwarded: bool,
}

impl Route {
    /// For a call made by this process.
    pub fn within(timeout: Duration) -> Self {
        Self { deadline: Instant::now() + timeout, was_forwarded: false }
    }

    /// For a call received: its `grpc-timeout`, at most the longest a client may ask for.
    pub(crate) fn of(metadata: &MetadataMap) -> Self {
        let asked = metadata.get("grpc-timeout").and_then(|value| grpc_timeout(value.to_str().ok()?));
        let longest = Duration::from_millis(limits::TIMEOUT_MS_MAX);
        let timeout = asked.unwrap_or(Duration::from_millis(limits::TIMEOUT_MS_DEFAULT)).min(longest);
        Self { deadline: Instant::now() + timeout, was_forwarded: metadata.contains_key(KEY_FORWARDED) }
    }

    pub(crate) fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// Reads gRPC's timeout header: digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount.checked_mul(3600)?),
        "M" => Duration::from_secs(amount.checked_mul(60)?),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
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
    /// Answers by `here` if this node leads, else by `there` at the node that does. Errors: the leader's refusal, or `Unavailable`
    /// once the deadline passed without one.
    pub(crate) async fn at_leader<'a, T>(
        &'a self,
        route: Route,
        here: impl Fn() -> BoxFuture<'a, Result<T, NotHere>> + Send + Sync,
        there: impl Fn(Hop) -> BoxFuture<'static, Result<Response<T>, Status>> + Send + Sync,
    ) -> Result<T, MetadataError> {
        let mut attempt = 0;
        let mut last: Option<RemoteError> = None;
        loop {
            let remaining = route.remaining();
            if remaining.is_zero() {
                return Err(no_leader(last).into());
            }
            if self.is_voter() {
                match tokio::time::timeout(remaining, here()).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(NotHere::Failed(error))) => return Err(error),
                    Ok(Err(NotHere::NotLeader)) => {}
                    Err(_) => return Err(no_leader(last).into()),
                }
            }
            if route.was_forwarded {
                return Err(RemoteError::new(ErrorKind::Unavailable, "this node is not the metadata leader").into());
            }
            if let Some(target) = self.next_target(attempt) {
                match self.try_hop(target, route.remaining(), &there).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded) => {
                        last = Some(error);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            attempt += 1;
            tokio::time::sleep(RETRY_PAUSE.min(route.remaining())).await;
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
    ) -> Result<T, RemoteError> {
        let channel = self
            .peers()
            .channel(target, Lane::Control)
            .map_err(|error| RemoteError::new(ErrorKind::Unavailable, error.to_string()))?;
        let hop = Hop { channel, envelope: self.peers().envelope(target), timeout };
        let answered = tokio::time::timeout(timeout, there(hop)).await;
        match answered {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => {
                let leader = status.metadata().get(KEY_LEADER).and_then(|value| value.to_str().ok()?.parse().ok());
                self.hint_leader(leader.map(NodeId));
                Err(status.into())
            }
            Err(_) => {
                self.hint_leader(None);
                Err(RemoteError::new(ErrorKind::DeadlineExceeded, format!("no answer from node {target}")))
            }
        }
    }

    /// A failure as a status that also names the leader.
    pub(crate) fn refusal(&self, error: MetadataError) -> Status {
        let mut status = Status::from(error);
        if let Some(leader) = self.leader() {
            status.metadata_mut().insert(KEY_LEADER, leader.0.into());
        }
        status
    }
}

fn no_leader(last: Option<RemoteError>) -> RemoteError {
    let because = last.map_or_else(String::new, |error| format!(": {}", error.message));
    RemoteError::new(ErrorKind::Unavailable, format!("the metadata group has no reachable leader{because}"))
        .with_hint("see that a majority of the metadata voters runs and can be reached, then try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read() {
        assert_eq!(grpc_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(grpc_timeout("7S"), Some(Duration::from_secs(7)));
        assert_eq!(grpc_timeout("9999999u"), Some(Duration::from_micros(9_999_999)));
        for bad in ["", "S", "7", "7x", "-1S", "€"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }
}
