//! `/openapi.json`, generated from the handlers.

use std::sync::LazyLock;

use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;
use xxhash_rust::xxh3::xxh3_64;

use super::conditional::{STATIC, has_current, not_modified, tagged};

/// The description of the whole API.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Susui",
        description = "Sharded semantic search with answers. Errors: `{\"error\":{type,message,hint,retryable,request_id}}`. Beside it stand two \
            front doors in the words of others: OpenAI's `/v1/{chat/completions,completions,embeddings,models}` and Ollama's \
            `/api/{generate,chat,embed,tags,show,version}`; the model `rag/COLLECTION` answers from a collection."
    ),
    paths(
        super::search::post_search,
        super::search::post_search_batch,
        super::search_get::get_search,
        super::query::post_query,
        super::collections::put_collection,
        super::collections::get_collection,
        super::collections::list_collections,
        super::collections::delete_collection,
        super::points::put_points,
        super::points::delete_points,
        super::documents::post_document,
        super::documents::get_document,
        super::documents::delete_document,
        super::document_list::list_documents,
        super::jobs::list_jobs,
        super::jobs::get_job,
        super::jobs::retry_job,
        super::jobs::delete_job,
        super::jobs::get_job_events,
        super::aliases::put_alias,
        super::aliases::list_aliases,
        super::aliases::delete_alias,
        super::tenants::put_tenant,
        super::tenants::get_tenant,
        super::tenants::list_tenants,
        super::tenants::get_usage,
        super::keys::post_key,
        super::keys::list_keys,
        super::keys::delete_key,
        super::keys::list_audit,
        super::catalog::get_catalog,
        super::catalog::post_upkeep,
        super::backends::list_backends,
        super::backends::post_backend,
        super::backends::delete_backend,
        super::cluster::get_cluster,
        super::nodes::drain,
        super::nodes::undrain,
        super::shards::digest,
        super::shards::promote_replica,
        super::shards::force_promote,
        super::health::get_livez,
        super::health::get_readyz,
        super::health::get_metrics,
    )
)]
pub struct ApiDescription;

/// The description as JSON, made once; it changes with the binary only.
pub async fn get_openapi(headers: HeaderMap) -> Response {
    static TEXT: LazyLock<(String, String)> = LazyLock::new(|| {
        let text = ApiDescription::openapi().to_json().unwrap_or_default();
        let etag = format!("W/\"{:016x}\"", xxh3_64(text.as_bytes()));
        (text, etag)
    });
    let (text, etag) = &*TEXT;
    let response = if has_current(&headers, etag) {
        not_modified()
    } else {
        ([(header::CONTENT_TYPE, "application/json")], text.as_str()).into_response()
    };
    tagged(response, Some(etag.clone()), STATIC)
}
