//! The state machine: a pure, total and deterministic function of state and command.
//!
//! No clock, hash, float arithmetic, randomness or unordered map; a command that does not fit is refused by value, so every voter
//! that applies the log gets the same bytes. Ids are allotted here and nowhere else.

mod collections;
mod force;
mod nodes;
mod shards;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use cluster_config::cluster_state::ClusterState;
use cluster_config::error::ErrorKind;

use super::command::{Command, Response};
use super::state::State;

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq)]
struct Refusal {
    kind: ErrorKind,
    message: String,
}

impl Refusal {
    fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// What a handler came to.
struct Outcome {
    changed: bool,
    response: Response,
}

impl Outcome {
    fn changed(response: Response) -> Self {
        Self { changed: true, response }
    }

    fn unchanged(response: Response) -> Self {
        Self { changed: false, response }
    }
}

/// Applies one agreed command. The version grows if, and only if, the state changed.
pub fn apply(state: &mut State, command: &Command) -> Response {
    if command.feature_level() > state.cluster.feature_level {
        return Response::Refused {
            kind: ErrorKind::Conflict,
            message: format!(
                "feature level {} is needed, the cluster is at {}",
                command.feature_level(),
                state.cluster.feature_level
            ),
        };
    }
    let outcome = match command {
        Command::RegisterNode(node) => nodes::register(state, node),
        Command::MarkDead { node, incarnation } => nodes::mark_dead(state, *node, *incarnation),
        Command::CreateCollection { spec, assignment } => collections::create(state, spec, assignment),
        Command::DeleteCollection { name } => collections::delete(state, name),
        Command::Propose(proposal) => Ok(shards::propose(state, proposal)),
        Command::Reconfigure(parts) => Ok(shards::reconfigure(state, parts)),
        Command::AddCopy { shard, expect_version, copy } => shards::add_copy(state, *shard, *expect_version, *copy),
        Command::RetireCopy { shard, expect_version, copy } => {
            shards::retire_copy(state, *shard, *expect_version, *copy)
        }
        Command::ReplaceCopy { shard, expect_version, copy } => {
            shards::replace_copy(state, *shard, *expect_version, *copy)
        }
        Command::ForgetRetired(copies) => Ok(nodes::forget_retired(state, copies)),
        Command::SetLifecycle { node, lifecycle } => nodes::set_lifecycle(state, *node, *lifecycle),
        Command::PromoteReplica { shard, expect_version, copy } => {
            shards::promote_replica(state, *shard, *expect_version, *copy)
        }
        Command::ForcePromote(forced) => force::promote(state, forced),
    };
    match outcome {
        Ok(Outcome { changed, response }) => {
            if changed {
                cluster_mut(state).version += 1;
            }
            response
        }
        Err(Refusal { kind, message }) => Response::Refused { kind, message },
    }
}

/// The cluster for writing. Watchers hold the last published one, so the first write after a publication copies it.
fn cluster_mut(state: &mut State) -> &mut ClusterState {
    Arc::make_mut(&mut state.cluster)
}
