//! `PUT/GET/DELETE /api/v1/collections/{collection}` and their list.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use cluster_config::cluster_state::ClusterState;
use cluster_config::collection::{
    COPIES_DEFAULT, Collection, CollectionSpec, FieldType, IndexSpec, Metric, SHARDS_DEFAULT, default_min_in_sync,
    default_pca_dim,
};
use cluster_config::error::ErrorKind;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::cluster::{NODE_TIMEOUT, any_node};
use super::error::{ApiResult, ErrorBody};
use super::json::{StrictJson, json};
use crate::error::{Error, Result};
use crate::services::Services;

/// Longest wait for the shards of a new collection to get their primaries; the answer tells how many have.
const PLACEMENT_WAIT: Duration = Duration::from_secs(3);

/// Longest wait for as many data nodes as a new collection has copies: a cluster that starts learns of them one after the other.
const NODES_WAIT: Duration = Duration::from_secs(3);

/// A collection to be created.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CollectionBody {
    /// Components of a vector; may be left out where `embedder` names this coordinator's model.
    #[schema(example = 384)]
    pub dim: Option<u32>,
    /// `cosine` (default), `l2` or `dot`.
    #[schema(value_type = Option<String>)]
    pub metric: Option<Metric>,
    /// Shards; fixed for the collection's life.
    pub shards: Option<u32>,
    /// Copies of each shard that may become primary.
    pub copies: Option<u32>,
    /// Further copies that only serve reads.
    pub read_replicas: Option<u32>,
    /// Fewest in-sync copies with which writes are accepted.
    pub min_in_sync: Option<u32>,
    /// Model that embeds texts; without one only vectors are taken.
    pub embedder: Option<String>,
    /// Metadata fields for filters: `keyword`, `integer`, `float`, `bool` or `datetime`. `"*": "scan"` lets filters name any other field too,
    /// without an index.
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub fields: Option<BTreeMap<String, FieldType>>,
    /// Dimension after PCA; `null` keeps all; left out: chosen.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>)]
    pub pca_dim: Option<Option<u32>>,
    /// Index settings; what is left out is chosen by each shard.
    #[schema(value_type = Option<Object>)]
    pub index: Option<IndexSpec>,
}

/// Tells `null` from absent.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<Option<u32>>, D::Error> {
    Option::<u32>::deserialize(deserializer).map(Some)
}

/// A collection as it is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CollectionReply {
    /// Its name.
    pub name: String,
    /// Its id; another one after being created again.
    pub id: u64,
    /// Components of a vector.
    pub dim: u32,
    /// How vectors are compared.
    #[schema(value_type = String)]
    pub metric: Metric,
    /// Shards.
    pub shards: u32,
    /// Voting copies.
    pub copies: u32,
    /// Read replicas.
    pub read_replicas: u32,
    /// Fewest in-sync copies for writes.
    pub min_in_sync: u32,
    /// Model, where there is one.
    pub embedder: Option<String>,
    /// Declared metadata fields.
    #[schema(value_type = BTreeMap<String, String>)]
    pub fields: BTreeMap<String, FieldType>,
    /// Dimension after PCA.
    pub pca_dim: Option<u32>,
    /// Index settings.
    #[schema(value_type = Object)]
    pub index: IndexSpec,
    /// Shards that have a primary now.
    pub shards_writable: u32,
}

/// All collections.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CollectionsReply {
    /// By name.
    pub collections: Vec<CollectionReply>,
}

/// What a deletion did.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct DeletedReply {
    /// Whether it was there.
    pub existed: bool,
}

impl CollectionBody {
    /// The whole spec, defaults filled in and checked.
    fn into_spec(self, name: String, services: &Services) -> Result<CollectionSpec> {
        let embedder = services.embedder.as_ref();
        let dim = match (&self.embedder, self.dim) {
            (Some(model), _) if model != embedder.name() => {
                let hint = format!("this coordinator runs {:?}", embedder.name());
                return Err(Error::field("embedder", format!("unknown model {model:?}"), hint));
            }
            (Some(_), Some(dim)) if dim as usize != embedder.dim() => {
                let problem = format!("{dim} does not fit {:?}", embedder.name());
                return Err(Error::field("dim", problem, format!("use {} or leave it out", embedder.dim())));
            }
            (Some(_), _) => embedder.dim() as u32,
            (None, Some(dim)) => dim,
            (None, None) => return Err(Error::field("dim", "missing", "give the vectors' dimension, or an embedder")),
        };
        let copies = self.copies.unwrap_or(COPIES_DEFAULT);
        let mut spec = CollectionSpec::new(name, dim);
        spec.metric = self.metric.unwrap_or_default();
        spec.shard_count = self.shards.unwrap_or(SHARDS_DEFAULT);
        spec.copies = copies;
        spec.read_replicas = self.read_replicas.unwrap_or(0);
        spec.min_in_sync = self.min_in_sync.unwrap_or_else(|| default_min_in_sync(copies));
        spec.embedder = self.embedder;
        spec.fields = self.fields.unwrap_or_default();
        spec.pca_dim = self.pca_dim.unwrap_or_else(|| default_pca_dim(dim));
        spec.index = self.index.unwrap_or_default();
        spec.validate()?;
        Ok(spec)
    }
}

/// Creates a collection. Safe to repeat with the same body.
#[utoipa::path(put, path = "/api/v1/collections/{collection}", tag = "collections", request_body = CollectionBody,
    params(("collection" = String, Path, description = "1 to 64 of a-z, 0-9, _ and -")),
    responses((status = 201, body = CollectionReply), (status = 200, body = CollectionReply, description = "existed with this spec"),
        (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn put_collection(
    State(services): State<Arc<Services>>,
    Path(name): Path<String>,
    StrictJson(body): StrictJson<CollectionBody>,
) -> ApiResult<Response> {
    let spec = body.into_spec(name, &services)?;
    if services.aliases.resolve(&spec.name).is_some() {
        let text = format!("{:?} is an alias", spec.name);
        return Err(Error::refused(ErrorKind::Conflict, text, "delete the alias, or choose another name").into());
    }
    let deadline = Instant::now() + services.default_timeout;
    let existed = services.view.state().collection_named(&spec.name).is_some();
    if !existed {
        let wanted = (spec.copies + spec.read_replicas) as usize;
        let has_places = |state: &ClusterState| state.placeable().count() >= wanted;
        // In vain, the metadata leader says what is missing.
        let _ = services.view.wait_for(deadline.min(Instant::now() + NODES_WAIT), has_places).await;
    }
    let call = |peer, until| services.client.create_collection(peer, spec.clone(), until);
    let (collection, version) = any_node(&services, deadline, NODE_TIMEOUT, call).await?;
    let is_there = |state: &ClusterState| state.version >= version && state.collections.contains_key(&collection.id);
    let state = services.view.wait_for(deadline, is_there).await.ok_or_else(|| {
        let text = "the collection was created, but this coordinator has not heard of it yet";
        Error::refused(ErrorKind::DeadlineExceeded, text, "send the same request again: it is safe to repeat")
    })?;
    // Copies are placed and a primary chosen within moments; whoever writes or searches next should find it done.
    let is_writable = |state: &ClusterState| state.shards_of(collection.id).all(|group| group.primary.is_some());
    let placed = services.view.wait_for(deadline.min(Instant::now() + PLACEMENT_WAIT), is_writable).await;
    let state = placed.unwrap_or(state);
    let status = if existed { StatusCode::OK } else { StatusCode::CREATED };
    Ok(json(status, &collection_reply(&state, &collection)))
}

/// A collection's spec.
#[utoipa::path(get, path = "/api/v1/collections/{collection}", tag = "collections",
    params(("collection" = String, Path, description = "its name")),
    responses((status = 200, body = CollectionReply), (status = "4XX", body = ErrorBody)))]
pub async fn get_collection(State(services): State<Arc<Services>>, Path(name): Path<String>) -> ApiResult<Response> {
    let collection = services.collection(&name)?;
    Ok(json(StatusCode::OK, &collection_reply(&services.view.state(), &collection)))
}

/// All collections.
#[utoipa::path(get, path = "/api/v1/collections", tag = "collections", responses((status = 200, body = CollectionsReply)))]
pub async fn list_collections(State(services): State<Arc<Services>>) -> ApiResult<Response> {
    let state = services.view.state();
    let mut collections: Vec<CollectionReply> =
        state.collections.values().map(|collection| collection_reply(&state, collection)).collect();
    collections.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(json(StatusCode::OK, &CollectionsReply { collections }))
}

/// Deletes a collection with all it holds, by its own name. Safe to repeat.
#[utoipa::path(delete, path = "/api/v1/collections/{collection}", tag = "collections",
    params(("collection" = String, Path, description = "its name")),
    responses((status = 200, body = DeletedReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn delete_collection(State(services): State<Arc<Services>>, Path(name): Path<String>) -> ApiResult<Response> {
    cluster_config::ids::check_collection_name(&name)
        .map_err(|error| Error::field("collection", error.to_string(), "correct the collection's name"))?;
    if services.view.state().collection_named(&name).is_none()
        && let Some(aliased) = services.aliases.resolve(&name)
    {
        let text = format!("{name:?} is an alias of collection {aliased:?}");
        let hint = format!("delete {aliased:?} by its own name, or the alias with DELETE /api/v1/aliases/{name}");
        return Err(Error::refused(ErrorKind::Conflict, text, hint).into());
    }
    let edit = {
        let services = Arc::clone(&services);
        async move { remove_collection(&services, &name).await }
    };
    let existed = services.ingest.see_through(edit).await?;
    Ok(json(StatusCode::OK, &DeletedReply { existed }))
}

/// Whether it existed. The catalog goes first: where the process dies in between, the collection is still there to be deleted again.
/// And last, for what was uploaded meanwhile.
async fn remove_collection(services: &Services, name: &str) -> Result<bool> {
    let id = services.view.state().collection_named(name).map(|collection| collection.id);
    let deadline = Instant::now() + services.default_timeout;
    let forget = async || match id {
        Some(id) => services.catalog.delete_collection(id.0).await,
        None => Ok(()),
    };
    forget().await?;
    let call = |peer, until| services.client.delete_collection(peer, name.to_owned(), until);
    let (existed, version) = any_node(services, deadline, NODE_TIMEOUT, call).await?;
    let _ = services.view.wait_for(deadline, |state| state.version >= version).await;
    forget().await?;
    services.ingest.announce();
    Ok(existed)
}

fn collection_reply(state: &ClusterState, collection: &Collection) -> CollectionReply {
    let spec = collection.spec.clone();
    let shards_writable = state.shards_of(collection.id).filter(|group| group.primary.is_some()).count() as u32;
    CollectionReply {
        name: spec.name,
        id: collection.id.0,
        dim: spec.dim,
        metric: spec.metric,
        shards: spec.shard_count,
        copies: spec.copies,
        read_replicas: spec.read_replicas,
        min_in_sync: spec.min_in_sync,
        embedder: spec.embedder,
        fields: spec.fields,
        pca_dim: spec.pca_dim,
        index: spec.index,
        shards_writable,
    }
}
