//! What an answer or an error means: for the read, for its node, and for what is asked next.

use std::time::Duration;

use cluster_config::error::ErrorKind;
use cluster_config::ids::ShardId;
use cluster_config::search::{Consistency, SessionToken, ShardAnswer};

use super::Rules;
use crate::cluster::client::{CopyTarget, NodeError};
use crate::cluster::stats::Refusal;

/// What to do about an error.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reaction {
    /// Another copy may answer.
    Elsewhere,
    /// Another copy, once, if the budget allows.
    ElsewhereOnce,
    /// Every copy would say the same, or it is too late.
    Final,
}

impl Rules<'_> {
    /// What an error says about its node.
    pub(super) fn refusal(&self, error: &NodeError, waited: Duration) -> Refusal {
        match error.kind {
            _ if error.disconnected => Refusal::Failure,
            ErrorKind::Overloaded | ErrorKind::RateLimited => Refusal::Overloaded,
            ErrorKind::Internal | ErrorKind::Corrupt => Refusal::Failure,
            ErrorKind::Unavailable => match self.consistency {
                Consistency::Eventual => Refusal::Failure,
                Consistency::Session => Refusal::Lagging(waited),
                // Perhaps its peers did not confirm.
                Consistency::Strong => Refusal::Neutral,
            },
            _ => Refusal::Neutral,
        }
    }

    /// What is to be done about an error of the copy that was `asked`.
    pub(super) fn reaction(&self, shard: ShardId, asked: &CopyTarget, error: &NodeError) -> Reaction {
        match error.kind {
            ErrorKind::Overloaded | ErrorKind::RateLimited => Reaction::ElsewhereOnce,
            ErrorKind::DeadlineExceeded => Reaction::Final,
            // About the caller's token only if there is one of the lineage that was asked for; else our state is old.
            ErrorKind::TokenVoid => match self.token(shard) {
                Some(token) if token.lineage == asked.lineage => Reaction::Final,
                _ => Reaction::Elsewhere,
            },
            kind if kind.is_deterministic() => Reaction::Final,
            _ => Reaction::Elsewhere,
        }
    }

    /// The token that the read must honour.
    pub(super) fn token(&self, shard: ShardId) -> Option<SessionToken> {
        match self.consistency {
            Consistency::Eventual => None,
            Consistency::Session | Consistency::Strong => self.session.token(shard),
        }
    }

    /// An answer must fit the question and, for a session, stand at or after its token.
    pub(super) fn check(&self, shard: ShardId, answers: Vec<ShardAnswer>) -> Result<Vec<ShardAnswer>, NodeError> {
        if answers.len() != self.queries {
            let text = format!("{} answers to {} queries", answers.len(), self.queries);
            return Err(NodeError::new(ErrorKind::Internal, text));
        }
        let (Some(token), Some(answer)) = (self.token(shard), answers.first()) else { return Ok(answers) };
        if answer.position.lineage > token.lineage {
            return Err(token_void(shard));
        }
        if (answer.position.lineage, answer.position.applied) < (token.lineage, token.seqno) {
            let text = format!("shard {shard} has not yet applied what the session has seen");
            return Err(NodeError::new(ErrorKind::Unavailable, text));
        }
        Ok(answers)
    }
}

/// The definite end of a read with a token of an older lineage.
pub(in crate::retrieve) fn token_void(shard: ShardId) -> NodeError {
    let text = format!("shard {shard} was recovered with data loss after this session token was issued");
    let mut error = NodeError::new(ErrorKind::TokenVoid, text);
    error.hint = "drop the session token and read again; writes it stood for may be lost".to_owned();
    error
}
