//! `PUT/GET/DELETE /api/v1/aliases/{alias}`: other names of collections.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use cluster_config::error::ErrorKind;
use cluster_config::ids::check_collection_name;
use cluster_config::limits;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::collections::DeletedReply;
use super::error::{ApiResult, ErrorBody};
use super::json::{StrictJson, json};
use crate::error::{Error, Result};
use crate::services::Services;

/// What an alias is to name.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AliasBody {
    /// An existing collection.
    pub collection: String,
}

/// An alias as it is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AliasReply {
    /// The other name.
    pub alias: String,
    /// The collection that it stands for.
    pub collection: String,
}

/// All aliases.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AliasesReply {
    /// By alias.
    pub aliases: Vec<AliasReply>,
}

/// Lets an alias name a collection, from the next request on. Safe to repeat.
#[utoipa::path(put, path = "/api/v1/aliases/{alias}", tag = "collections", request_body = AliasBody,
    params(("alias" = String, Path, description = "as a collection's name, and not the name of one")),
    responses((status = 200, body = AliasReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn put_alias(
    State(services): State<Arc<Services>>,
    Path(alias): Path<String>,
    StrictJson(body): StrictJson<AliasBody>,
) -> ApiResult<Response> {
    check_alias(&alias)?;
    let state = services.view.state();
    if state.collection_named(&alias).is_some() {
        let text = format!("{alias:?} is a collection");
        return Err(Error::refused(ErrorKind::Conflict, text, "choose another alias, or delete the collection").into());
    }
    if state.collection_named(&body.collection).is_none() {
        let problem = format!("{:?} does not exist", body.collection);
        let hint = "name an existing collection; an alias cannot name another alias";
        return Err(Error::field("collection", problem, hint).into());
    }
    let known = services.aliases.all();
    if known.len() >= limits::ALIASES_MAX && !known.contains_key(&alias) {
        let text = format!("there are {} aliases", limits::ALIASES_MAX);
        return Err(Error::refused(ErrorKind::TooLarge, text, "delete some").into());
    }
    services.aliases.put(&alias, &body.collection).await?;
    Ok(json(StatusCode::OK, &AliasReply { alias, collection: body.collection }))
}

/// All aliases.
#[utoipa::path(get, path = "/api/v1/aliases", tag = "collections", responses((status = 200, body = AliasesReply), (status = "4XX", body = ErrorBody)))]
pub async fn list_aliases(State(services): State<Arc<Services>>) -> ApiResult<Response> {
    let known = services.aliases.all();
    let reply =
        |(alias, collection): (&String, &String)| AliasReply { alias: alias.clone(), collection: collection.clone() };
    Ok(json(StatusCode::OK, &AliasesReply { aliases: known.iter().map(reply).collect() }))
}

/// Removes an alias; the collection stays. Safe to repeat.
#[utoipa::path(delete, path = "/api/v1/aliases/{alias}", tag = "collections", params(("alias" = String, Path, description = "the alias")),
    responses((status = 200, body = DeletedReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn delete_alias(State(services): State<Arc<Services>>, Path(alias): Path<String>) -> ApiResult<Response> {
    check_alias(&alias)?;
    Ok(json(StatusCode::OK, &DeletedReply { existed: services.aliases.delete(&alias).await? }))
}

fn check_alias(alias: &str) -> Result<()> {
    check_collection_name(alias).map_err(|error| Error::field("alias", error.to_string(), "correct the alias"))
}
