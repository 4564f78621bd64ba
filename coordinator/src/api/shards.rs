//! `POST /api/v1/shards/{collection}/{index}:ACTION`: one shard under an operator's hands.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{FromRequest, Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, ShardId};
use cluster_config::limits;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::cluster::{NODE_TIMEOUT, any_node};
use super::error::{ApiResult, ErrorBody};
use super::json::{StrictJson, json};
use crate::cluster::operator::{CopyOutlook, ForcePromotion};
use crate::error::{Error, Result};
use crate::services::Services;

/// Digests of a shard's copies.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct DigestReply {
    /// `collection_id/index`.
    pub shard: String,
    /// Whether all in-sync copies answered and hold the same.
    pub agree: bool,
    /// Each copy's digest.
    pub copies: Vec<CopyDigestBody>,
}

/// One copy's digest; hexadecimal, because JSON readers lose the low bits of large numbers.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CopyDigestBody {
    /// The copy.
    pub copy: u64,
    /// Its node.
    pub node: u64,
    /// Whether it is in the in-sync set.
    pub in_sync: bool,
    /// Applied up to here when it was taken.
    pub applied: u64,
    /// Over documents, chunks, texts, metadata and vectors.
    pub documents: String,
    /// Over live rows and rows in the index.
    pub index_membership: String,
    /// Over the log after `log_from`.
    pub log: String,
    /// Where `log` begins.
    pub log_from: u64,
    /// Live documents.
    pub document_count: u64,
    /// Live chunks.
    pub chunk_count: u64,
    /// Why there is no digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A read replica that is to vote.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PromoteReplicaBody {
    /// The copy.
    pub copy: u64,
}

/// What became of a read replica.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PromoteReplicaReply {
    /// `collection_id/index`.
    pub shard: String,
    /// The copy.
    pub copy: u64,
    /// False where it voted already.
    pub changed: bool,
    /// Version of the state in which it votes.
    pub state_version: u64,
}

/// A forced promotion. Without `accept_data_loss` nothing is changed.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForcePromoteBody {
    /// The copy that everything is to be recovered from.
    pub copy: u64,
    /// Do it: what only other copies hold is lost.
    #[serde(default)]
    pub accept_data_loss: bool,
    /// Do it although a member of the in-sync set lives.
    #[serde(default)]
    pub override_live: bool,
    /// With `accept_data_loss`: `register_version` of the answer that the decision was made on.
    pub expect_version: Option<u64>,
    /// With `accept_data_loss`: who you are, for the audit.
    pub by: Option<String>,
}

/// What a forced promotion did, or would do.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ForcePromoteReply {
    /// `collection_id/index`.
    pub shard: String,
    /// The copy.
    pub copy: u64,
    /// Whether it was done by this call.
    pub done: bool,
    /// Version of the shard's register now.
    pub register_version: u64,
    /// Its lineage now.
    pub lineage: u64,
    /// Its term now.
    pub primary_term: u64,
    /// All copies as they were before.
    pub copies: Vec<CopyOutlookBody>,
    /// Entries by which the longest log that was seen exceeds the copy's: what would be lost at least, as far as is known.
    pub entries_lost_known: u64,
    /// In-sync copies whose log's end is not known: they may hold more.
    pub in_sync_unknown: u32,
    /// Why accepting the loss would be refused.
    pub objection: Option<String>,
}

/// A copy before a forced promotion.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CopyOutlookBody {
    /// The copy.
    pub copy: u64,
    /// Its node.
    pub node: u64,
    /// Whether it holds every acknowledged write.
    pub in_sync: bool,
    /// End of its log; absent where it was not seen.
    pub last_seqno: Option<u64>,
    /// Term of its last entry; absent where it was not seen.
    pub last_term: Option<u64>,
    /// `open`, `poisoned`, `corrupt`, `closed` (its node lives and has not reported it) or `dead` (its node is).
    pub condition: String,
    /// Why it is poisoned or corrupt.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Finds the action at the end of the path.
pub async fn post_shard_action(
    State(services): State<Arc<Services>>,
    Path((name, action)): Path<(String, String)>,
    request: Request,
) -> ApiResult<Response> {
    let (index, verb) = action.rsplit_once(':').unwrap_or((&action, ""));
    match verb {
        "digest" => digest(services, &name, index).await,
        "promote-replica" => {
            let StrictJson(body) = StrictJson::from_request(request, &services).await?;
            promote_replica(services, &name, index, body).await
        }
        "force-promote" => {
            let StrictJson(body) = StrictJson::from_request(request, &services).await?;
            force_promote(services, &name, index, body).await
        }
        _ => {
            let hint = "POST /api/v1/shards/{collection}/{index}:digest, :promote-replica or :force-promote";
            Err(Error::refused(ErrorKind::NotFound, format!("no action {action:?} on shards"), hint).into())
        }
    }
}

/// Compares a shard's copies.
#[utoipa::path(post, path = "/api/v1/shards/{collection}/{index}:digest", tag = "cluster",
    params(("collection" = String, Path, description = "name"), ("index" = u32, Path, description = "shard of the collection")),
    responses((status = 200, body = DigestReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub(super) async fn digest(services: Arc<Services>, name: &str, index: &str) -> ApiResult<Response> {
    let shard = find_shard(&services, name, index)?;
    let deadline = Instant::now() + services.default_timeout;
    // Hashing a large shard takes its time: one node gets all there is.
    let whole = services.default_timeout;
    let digests =
        any_node(&services, deadline, whole, |peer, until| services.client.digest(peer, shard, until)).await?;
    let state = services.view.state();
    let in_sync: BTreeSet<CopyId> = state.shards.get(&shard).map(|group| group.in_sync.clone()).unwrap_or_default();
    let mut distinct = BTreeSet::new();
    let mut all_answered = !digests.is_empty();
    let copies: Vec<CopyDigestBody> = digests
        .into_iter()
        .map(|copy| {
            let is_in_sync = in_sync.contains(&copy.copy);
            let (digest, error) = match copy.outcome {
                Ok(digest) => (digest, None),
                Err(error) => (Default::default(), Some(error.to_string())),
            };
            if is_in_sync {
                all_answered &= error.is_none();
                distinct.insert((digest.documents, digest.index_membership, digest.position.applied));
            }
            CopyDigestBody {
                copy: copy.copy.0,
                node: copy.node.0,
                in_sync: is_in_sync,
                applied: digest.position.applied.0,
                documents: format!("{:016x}", digest.documents),
                index_membership: format!("{:016x}", digest.index_membership),
                log: format!("{:016x}", digest.log),
                log_from: digest.log_from.0,
                document_count: digest.document_count,
                chunk_count: digest.chunk_count,
                error,
            }
        })
        .collect();
    let reply = DigestReply { shard: shard.to_string(), agree: all_answered && distinct.len() <= 1, copies };
    Ok(json(StatusCode::OK, &reply))
}

/// Makes a read replica a voter; it enters the in-sync set once it has caught up. Safe to repeat.
#[utoipa::path(post, path = "/api/v1/shards/{collection}/{index}:promote-replica", tag = "cluster",
    params(("collection" = String, Path, description = "name"), ("index" = u32, Path, description = "shard of the collection")),
    request_body = PromoteReplicaBody,
    responses((status = 200, body = PromoteReplicaReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub(super) async fn promote_replica(
    services: Arc<Services>,
    name: &str,
    index: &str,
    body: PromoteReplicaBody,
) -> ApiResult<Response> {
    let shard = find_shard(&services, name, index)?;
    let copy = find_copy(&services, shard, body.copy)?;
    let deadline = Instant::now() + services.default_timeout;
    let call = |peer, until| services.client.promote_replica(peer, shard, copy, until);
    let (changed, state_version) = any_node(&services, deadline, NODE_TIMEOUT, call).await?;
    let reply = PromoteReplicaReply { shard: shard.to_string(), copy: copy.0, changed, state_version };
    Ok(json(StatusCode::OK, &reply))
}

/// The way out when no in-sync copy of a shard is left: begins a new lineage with one copy. What only other copies hold is lost, they
/// are built anew, and session tokens of the shard are void. Without `accept_data_loss` it only says what that would cost.
#[utoipa::path(post, path = "/api/v1/shards/{collection}/{index}:force-promote", tag = "cluster",
    params(("collection" = String, Path, description = "name"), ("index" = u32, Path, description = "shard of the collection")),
    request_body = ForcePromoteBody,
    responses((status = 200, body = ForcePromoteReply), (status = 409, body = ErrorBody, description = "not called for, or the register changed"),
        (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub(super) async fn force_promote(
    services: Arc<Services>,
    name: &str,
    index: &str,
    body: ForcePromoteBody,
) -> ApiResult<Response> {
    let shard = find_shard(&services, name, index)?;
    let copy = find_copy(&services, shard, body.copy)?;
    let by = body.by.unwrap_or_default();
    let accept_data_loss_at = match body.expect_version {
        _ if !body.accept_data_loss => None,
        None => {
            let hint = "send register_version of an answer without accept_data_loss";
            return Err(Error::field("expect_version", "missing", hint).into());
        }
        Some(_) if by.is_empty() || by.len() > limits::WORD_BYTES_MAX => {
            let hint = format!("name yourself in 1 to {} bytes, for the audit", limits::WORD_BYTES_MAX);
            return Err(Error::field("by", format!("{} bytes", by.len()), hint).into());
        }
        accepted => accepted,
    };
    let override_live = body.override_live;
    let promotion = ForcePromotion { shard, copy, accept_data_loss_at, override_live, by };
    let deadline = Instant::now() + services.default_timeout;
    // Repeating it is safe: the register's version lets it happen once.
    let call = |peer, until| services.client.force_promote(peer, promotion.clone(), until);
    let outlook = any_node(&services, deadline, NODE_TIMEOUT, call).await?;
    if outlook.done {
        // Whoever asks this coordinator next should find the new lineage.
        let _ = services.view.wait_for(deadline, |state| state.version >= outlook.state_version).await;
    }
    let end = |copy: &CopyOutlook| copy.last.map_or(0, |last| last.seqno.0);
    let kept = outlook.copies.iter().find(|other| other.copy == copy).map_or(0, end);
    let longest = outlook.copies.iter().map(end).max().unwrap_or(0);
    let unknown = |other: &&CopyOutlook| other.in_sync && other.last.is_none() && other.copy != copy;
    let reply = ForcePromoteReply {
        shard: shard.to_string(),
        copy: copy.0,
        done: outlook.done,
        register_version: outlook.register.version,
        lineage: outlook.register.lineage.0,
        primary_term: outlook.register.primary_term.0,
        entries_lost_known: longest - kept,
        in_sync_unknown: outlook.copies.iter().filter(unknown).count() as u32,
        copies: outlook.copies.into_iter().map(outlook_body).collect(),
        objection: Some(outlook.objection).filter(|text| !text.is_empty()),
    };
    Ok(json(StatusCode::OK, &reply))
}

fn outlook_body(copy: CopyOutlook) -> CopyOutlookBody {
    CopyOutlookBody {
        copy: copy.copy.0,
        node: copy.node.0,
        in_sync: copy.in_sync,
        last_seqno: copy.last.map(|last| last.seqno.0),
        last_term: copy.last.map(|last| last.term.0),
        condition: copy.condition,
        reason: copy.reason,
    }
}

fn find_shard(services: &Services, name: &str, index: &str) -> Result<ShardId> {
    let collection = services.collection(name)?;
    let shards = collection.spec.shard_count;
    let index = index.parse().ok().filter(|index| *index < shards).ok_or_else(|| {
        Error::field("index", format!("{index:?} is not a shard of {name:?}"), format!("use 0 to {}", shards - 1))
    })?;
    Ok(ShardId { collection: collection.id, index })
}

fn find_copy(services: &Services, shard: ShardId, copy: u64) -> Result<CopyId> {
    let state = services.view.state();
    let group = state.shards.get(&shard);
    let copies: Vec<String> =
        group.into_iter().flat_map(|group| group.copies.keys()).map(|copy| copy.to_string()).collect();
    if group.is_some_and(|group| group.copies.contains_key(&CopyId(copy))) {
        return Ok(CopyId(copy));
    }
    let hint = format!("the shard's copies are {}", copies.join(", "));
    Err(Error::field("copy", format!("shard {shard} has no copy {copy}"), hint))
}
