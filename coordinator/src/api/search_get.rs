//! `GET /api/v1/search`: the search by text as a URL, so that browsers and HTTP caches can ask "still the same?" (`If-None-Match`).

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;

use super::auth::Caller;
use super::conditional::{PRIVATE, has_current, not_modified, tagged};
use super::error::{ApiResult, ErrorBody};
use super::json::{StrictQuery, json, parse_json};
use super::search::{IncludeField, SearchBody, SearchReply, etag, read_search, reply};
use crate::answer;
use crate::error::{Error, Result};
use crate::services::Services;

/// A search by text; the fields mean what they mean in the body of the POST.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct SearchParameters {
    /// Text to search for.
    query: Option<String>,
    /// Collection; `default` if not given.
    collection: Option<String>,
    /// Results wanted, 1 to 1000; 5 if not given.
    top_k: Option<u32>,
    /// Metadata filter, as JSON.
    filters: Option<String>,
    /// `text`, `metadata`, `vector`, joined by commas; the first two if not given.
    include: Option<String>,
    /// `eventual` (default), `session` or `strong`.
    consistency: Option<String>,
    /// How old an eventual read may be.
    max_staleness_ms: Option<u64>,
    /// Session token of an earlier answer.
    session: Option<String>,
    /// Least share of shards that must answer, 0 to 1; 1 if not given.
    min_coverage: Option<f64>,
    /// Milliseconds until the request fails.
    timeout_ms: Option<u64>,
}

/// Searches by text. With `If-None-Match` of an earlier answer: 304 while the hits are the same and no shard has moved.
#[utoipa::path(get, path = "/api/v1/search", tag = "search", params(SearchParameters),
    responses((status = 200, body = SearchReply), (status = 304, description = "as it was"),
        (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn get_search(
    State(services): State<Arc<Services>>,
    caller: Caller,
    headers: HeaderMap,
    StrictQuery(parameters): StrictQuery<SearchParameters>,
) -> ApiResult<Response> {
    let began = Instant::now();
    let question = read_search(&services, &caller, into_body(parameters)?, "")?;
    let ranked = answer::rank(&services, vec![question]).await?;
    let ranked = ranked.into_iter().next().ok_or_else(|| Error::internal("one search has one result"))?;
    let etag = etag(&ranked);
    let response =
        if has_current(&headers, &etag) { not_modified() } else { json(StatusCode::OK, &reply(ranked, began, false)) };
    Ok(tagged(response, Some(etag), PRIVATE))
}

fn into_body(parameters: SearchParameters) -> Result<SearchBody> {
    let filters =
        parameters.filters.map(|text| parse_json(text.as_bytes())).transpose().map_err(|error| match error {
            Error::Field(mut field) => {
                field.key = match field.key.as_str() {
                    "body" => "filters".to_owned(),
                    inner => format!("filters.{inner}"),
                };
                Error::Field(field)
            }
            other => other,
        })?;
    let include = parameters.include.map(|list| list.split(',').map(read_include).collect()).transpose()?;
    Ok(SearchBody {
        query: parameters.query,
        collection: parameters.collection,
        top_k: parameters.top_k,
        filters,
        include,
        consistency: parameters.consistency,
        max_staleness_ms: parameters.max_staleness_ms,
        session: parameters.session,
        min_coverage: parameters.min_coverage,
        timeout_ms: parameters.timeout_ms,
        ..SearchBody::default()
    })
}

fn read_include(word: &str) -> Result<IncludeField> {
    match word.trim() {
        "text" => Ok(IncludeField::Text),
        "metadata" => Ok(IncludeField::Metadata),
        "vector" => Ok(IncludeField::Vector),
        other => Err(Error::field("include", format!("unknown field {other:?}"), "use text, metadata, vector")),
    }
}
