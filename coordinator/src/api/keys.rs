//! `POST/GET /api/v1/keys`, `DELETE /api/v1/keys/{id}`, `GET /api/v1/audit`: what operators hand out, and what was done with it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use cluster_config::error::ErrorKind;
use cluster_config::ids::DEFAULT_TENANT;
use cluster_config::limits;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::auth::Scope;
use super::error::{ApiResult, ErrorBody};
use super::json::{StrictJson, StrictQuery, json, page_limit};
use super::tenants::{PageQuery, check_tenant_name, no_such_tenant};
use crate::catalog::keys::{KeyRow, NewKey};
use crate::catalog::operators::AuditRow;
use crate::error::{Error, Result};
use crate::services::Services;
use crate::tenants::{key_hash, new_key};

/// A key to be made.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyBody {
    /// Whose documents it opens; `default` if not given.
    pub tenant: Option<String>,
    /// What it is for.
    pub name: String,
    /// `read`, `write` or `admin`; each includes those before it. `admin` operates the whole cluster: only for the tenant `default`.
    pub scope: String,
    /// Seconds until it ends; never if not given.
    pub ttl_seconds: Option<u64>,
}

/// A key without its secret.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct KeyReply {
    /// Its id; not secret.
    pub id: String,
    /// Whose documents it opens.
    pub tenant: String,
    /// What it is for.
    pub name: String,
    /// The largest scope it has.
    pub scope: &'static str,
    /// Whether it opens anything now.
    pub valid: bool,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<i64>,
    /// Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_ms: Option<i64>,
    /// The key itself: shown once, when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// A page of keys.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct KeysReply {
    /// Oldest first.
    pub keys: Vec<KeyReply>,
    /// Give it as `cursor` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Whose keys.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct KeysQuery {
    /// The tenant; `default` if not given.
    pub tenant: Option<String>,
    /// Rows, 1 to 1000; 100 if not given.
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    pub cursor: Option<String>,
}

/// One administrative call.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AuditReply {
    /// In the order of time.
    pub id: String,
    /// Unix milliseconds.
    pub at_ms: i64,
    /// The caller's tenant.
    pub tenant: String,
    /// The caller's key; absent where none was required, and for the operator's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// Of the request.
    pub request_id: String,
    /// Method and route.
    pub action: String,
    /// The path that was called.
    pub target: String,
    /// How it was answered.
    pub status: u16,
}

/// A page of administrative calls.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AuditsReply {
    /// Newest first.
    pub calls: Vec<AuditReply>,
    /// Give it as `cursor` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Makes a key. Its text is in this answer and nowhere else: only its hash is kept.
#[utoipa::path(post, path = "/api/v1/keys", tag = "tenants", request_body = KeyBody,
    responses((status = 201, body = KeyReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn post_key(
    State(services): State<Arc<Services>>,
    StrictJson(body): StrictJson<KeyBody>,
) -> ApiResult<Response> {
    let key = new_key();
    let wanted = read_key(body)?;
    let made = services.catalog.create_key(&wanted, &key_hash(&key)).await?;
    let row = made.ok_or_else(|| no_such_tenant(&wanted.tenant))?;
    // The key may have been tried before it was there.
    services.tenants.forget();
    Ok(json(StatusCode::CREATED, &KeyReply { key: Some(key), ..key_reply(row) }))
}

fn read_key(body: KeyBody) -> Result<NewKey> {
    let tenant = body.tenant.unwrap_or_else(|| DEFAULT_TENANT.to_owned());
    check_tenant_name("tenant", &tenant)?;
    let Some(scope) = Scope::parse(&body.scope) else {
        return Err(Error::field("scope", format!("unknown scope {:?}", body.scope), "use read, write or admin"));
    };
    if scope == Scope::Admin && tenant != DEFAULT_TENANT {
        let hint = format!("make it for the tenant {DEFAULT_TENANT:?}, or use read or write");
        return Err(Error::field("scope", "admin operates the whole cluster, not one tenant", hint));
    }
    if body.name.is_empty() || body.name.len() > limits::KEY_NAME_BYTES_MAX || body.name.chars().any(char::is_control) {
        let hint = format!("use 1 to {} bytes without control characters", limits::KEY_NAME_BYTES_MAX);
        return Err(Error::field("name", format!("{} bytes, or control characters", body.name.len()), hint));
    }
    let valid_ms = body.ttl_seconds.map(|seconds| i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000));
    Ok(NewKey { key_id: Uuid::now_v7(), tenant, name: body.name, scope, valid_ms })
}

/// A tenant's keys, without their secrets.
#[utoipa::path(get, path = "/api/v1/keys", tag = "tenants", params(KeysQuery),
    responses((status = 200, body = KeysReply), (status = "4XX", body = ErrorBody)))]
pub async fn list_keys(
    State(services): State<Arc<Services>>,
    StrictQuery(query): StrictQuery<KeysQuery>,
) -> ApiResult<Response> {
    let limit = page_limit(query.limit)?;
    let tenant = query.tenant.as_deref().unwrap_or(DEFAULT_TENANT);
    let mut rows = services.catalog.keys(tenant, query.cursor.as_deref().unwrap_or(""), limit + 1).await?;
    let has_more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows.last().filter(|_| has_more).map(|row| row.key_id.to_string());
    Ok(json(StatusCode::OK, &KeysReply { keys: rows.into_iter().map(key_reply).collect(), next_cursor }))
}

/// Revokes a key: here at once, at other coordinators within five seconds. Safe to repeat.
#[utoipa::path(delete, path = "/api/v1/keys/{id}", tag = "tenants", params(("id" = String, Path, description = "the key's id")),
    responses((status = 200, body = KeyReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn delete_key(State(services): State<Arc<Services>>, Path(id): Path<String>) -> ApiResult<Response> {
    let key_id = read_id("id", &id)?;
    let row = services.catalog.revoke_key(key_id).await?.ok_or_else(|| {
        let hint = "GET /api/v1/keys?tenant= lists a tenant's keys";
        Error::refused(ErrorKind::NotFound, format!("key {id} does not exist"), hint)
    })?;
    services.tenants.forget();
    Ok(json(StatusCode::OK, &key_reply(row)))
}

/// What operators did, newest first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "tenants", params(PageQuery),
    responses((status = 200, body = AuditsReply), (status = "4XX", body = ErrorBody)))]
pub async fn list_audit(
    State(services): State<Arc<Services>>,
    StrictQuery(query): StrictQuery<PageQuery>,
) -> ApiResult<Response> {
    let limit = page_limit(query.limit)?;
    let before = query.cursor.as_deref().map(|cursor| read_id("cursor", cursor)).transpose()?;
    let mut rows = services.catalog.audit(before, limit + 1).await?;
    let has_more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows.last().filter(|_| has_more).map(|row| row.audit_id.to_string());
    Ok(json(StatusCode::OK, &AuditsReply { calls: rows.into_iter().map(audit_reply).collect(), next_cursor }))
}

fn read_id(field: &str, text: &str) -> Result<Uuid> {
    Uuid::parse_str(text).map_err(|_| Error::field(field, format!("{text:?} is not an id"), "give an id as answered"))
}

fn key_reply(row: KeyRow) -> KeyReply {
    KeyReply {
        valid: row.is_valid_after(Duration::ZERO),
        id: row.key_id.to_string(),
        tenant: row.tenant,
        name: row.name,
        scope: row.scope.as_str(),
        created_ms: row.created_ms,
        expires_ms: row.expires_ms,
        revoked_ms: row.revoked_ms,
        key: None,
    }
}

fn audit_reply(row: AuditRow) -> AuditReply {
    AuditReply {
        id: row.audit_id.to_string(),
        at_ms: row.at_ms,
        tenant: row.tenant,
        key_id: row.key_id.map(|id| id.to_string()),
        request_id: row.request_id,
        action: row.action,
        target: row.target,
        status: row.status,
    }
}
