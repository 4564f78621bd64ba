//! `GET /api/v1/documents`: documents page by page, in one of three orders.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use cluster_config::collection::Collection;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::auth::Caller;
use super::documents::{DocumentReply, document_read, from_row, listed_reply};
use super::error::{ApiResult, ErrorBody};
use super::json::{StrictQuery, json, page_limit};
use super::search::DEFAULT_COLLECTION;
use crate::catalog::documents::DocumentRow;
use crate::error::{Error, Result};
use crate::retrieve::documents::{DocumentRead, Listing};
use crate::services::Services;

/// Which page.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DocumentsQuery {
    /// Collection; `default` if not given.
    pub collection: Option<String>,
    /// Rows, 1 to 1000; 100 if not given.
    pub limit: Option<u32>,
    /// `id` (default): whatever is searchable or on its way, points included. `newest` and `title`: what was uploaded, as the catalog
    /// knows it.
    pub sort: Option<String>,
    /// Only what was uploaded under a title that begins so, in the order of titles.
    pub title: Option<String>,
    /// `next_cursor` of the page before.
    pub cursor: Option<String>,
    /// `eventual` (default), `session` or `strong`, for the searchable documents.
    pub consistency: Option<String>,
    /// Session token of an earlier answer.
    pub session: Option<String>,
}

/// A page of documents.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct DocumentsReply {
    /// In the order asked for.
    pub documents: Vec<DocumentReply>,
    /// Give it as `cursor` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// Send it with later reads to never see less than now.
    pub session: String,
}

/// How a page is ordered, and so where it comes from: ids are known to the shards, too, the rest to the catalog only.
enum Order {
    Id,
    Newest,
    /// Those whose title begins so.
    Title(String),
}

/// Documents: in id order those searchable and those on their way through this coordinator; newest first or by title those uploaded.
#[utoipa::path(get, path = "/api/v1/documents", tag = "documents", params(DocumentsQuery),
    responses((status = 200, body = DocumentsReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn list_documents(
    State(services): State<Arc<Services>>,
    caller: Caller,
    StrictQuery(query): StrictQuery<DocumentsQuery>,
) -> ApiResult<Response> {
    let collection = services.collection(query.collection.as_deref().unwrap_or(DEFAULT_COLLECTION))?;
    let limit = page_limit(query.limit)?;
    let read = document_read(&services, query.consistency.as_deref(), query.session.as_deref())?;
    let order = read_order(query.sort.as_deref(), query.title)?;
    let cursor = query.cursor.as_deref();
    let reply = match order {
        Order::Id => {
            list_by_id(&services, &collection, &caller.tenant, cursor.unwrap_or_default(), limit, &read).await?
        }
        Order::Newest => {
            let last: Option<(i64, String)> = read_cursor(cursor)?;
            let before = last.as_ref().map(|(created_ms, id)| (*created_ms, id.as_str()));
            let rows = services.catalog.newest_documents(collection.id.0, &caller.tenant, before, limit + 1).await?;
            uploads_page(rows, limit, &read, |row| serde_json::json!([row.created_ms, row.document_id]))
        }
        Order::Title(prefix) => {
            let last: Option<(String, String)> = read_cursor(cursor)?;
            let after = last.as_ref().map(|(title, id)| (title.as_str(), id.as_str()));
            let catalog = &services.catalog;
            let rows = catalog.titled_documents(collection.id.0, &caller.tenant, &prefix, after, limit + 1).await?;
            uploads_page(rows, limit, &read, |row| serde_json::json!([row.title, row.document_id]))
        }
    };
    Ok(json(StatusCode::OK, &reply))
}

fn read_order(sort: Option<&str>, title: Option<String>) -> Result<Order> {
    match (sort, title) {
        (None | Some("id"), None) => Ok(Order::Id),
        (Some("newest"), None) => Ok(Order::Newest),
        (None | Some("title"), title) => Ok(Order::Title(title.unwrap_or_default())),
        (Some("id" | "newest"), Some(_)) => {
            let hint = "what is found by title comes in the order of titles: leave sort out";
            Err(Error::field("sort", "given together with title", hint))
        }
        (Some(other), _) => Err(Error::field("sort", format!("unknown order {other:?}"), "use id, newest or title")),
    }
}

/// A place in a listing of uploads: what it is ordered by, and the id.
fn read_cursor<T: DeserializeOwned>(cursor: Option<&str>) -> Result<Option<(T, String)>> {
    let place = cursor.filter(|cursor| !cursor.is_empty()).map(serde_json::from_str).transpose();
    place.map_err(|_| Error::field("cursor", "not a place in this order", "send the next_cursor of the page before"))
}

/// At most `limit` rows as a page; one more says that there are more.
fn uploads_page(
    rows: Vec<DocumentRow>,
    limit: u32,
    read: &DocumentRead,
    place: impl Fn(&DocumentRow) -> Value,
) -> DocumentsReply {
    let has_more = rows.len() > limit as usize;
    let shown: Vec<DocumentRow> = rows.into_iter().take(limit as usize).collect();
    let next_cursor = shown.last().filter(|_| has_more).map(|last| place(last).to_string());
    let documents = shown.into_iter().map(|row| from_row(row, None)).collect();
    DocumentsReply { documents, next_cursor, session: read.session.to_string() }
}

/// What the shards list and what the catalog lists, merged.
async fn list_by_id(
    services: &Services,
    collection: &Collection,
    tenant: &str,
    after: &str,
    limit: u32,
    read: &DocumentRead,
) -> Result<DocumentsReply> {
    let (listing, rows) = tokio::join!(
        services.retriever.list_documents(collection, tenant, after, limit, read),
        services.catalog.documents(collection.id.0, tenant, after, limit + 1)
    );
    let Listing { documents: listed, more: shards_have_more, session } = listing?;
    let rows = rows?;
    // A source that gave a full page says nothing about ids behind its last one.
    let horizon = if shards_have_more { listed.last().map(|document| document.key.document_id.clone()) } else { None };
    let rows_horizon = if rows.len() as u32 > limit { rows.last().map(|row| row.document_id.clone()) } else { None };
    let mut merged: BTreeMap<String, DocumentReply> = BTreeMap::new();
    for document in listed {
        let reply = listed_reply(&document.key.document_id, &document.title, document.chunk_count);
        merged.insert(document.key.document_id, DocumentReply { searchable: true, ..reply });
    }
    for row in rows {
        let chunk_count = merged.get(&row.document_id).map_or(0, |listed| listed.chunk_count);
        merged.insert(row.document_id.clone(), from_row(row, Some(chunk_count)));
    }
    let total = merged.len();
    let is_known = |id: &String| {
        horizon.as_ref().is_none_or(|last| id <= last) && rows_horizon.as_ref().is_none_or(|last| id <= last)
    };
    let documents: Vec<DocumentReply> =
        merged.into_iter().filter(|(id, _)| is_known(id)).map(|(_, reply)| reply).take(limit as usize).collect();
    let has_more = documents.len() < total || horizon.is_some() || rows_horizon.is_some();
    let next_cursor = documents.last().filter(|_| has_more).map(|last| last.id.clone());
    Ok(DocumentsReply { documents, next_cursor, session: session.to_string() })
}
