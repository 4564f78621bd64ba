//! `PUT/GET /api/v1/tenants/{tenant}`, `GET .../usage`: tenants, their limits, and what they used.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use cluster_config::error::ErrorKind;
use cluster_config::ids::DocumentKey;
use cluster_config::limits;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::auth::{Caller, Scope};
use super::error::{ApiResult, ErrorBody};
use super::json::{StrictJson, StrictQuery, json, page_limit};
use crate::catalog::tenants::{TenantLimits, TenantRow, UsageRow};
use crate::error::{Error, Result};
use crate::services::Services;

/// A tenant's settings. What is left out has no limit.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantBody {
    /// Refuses its keys; nothing of it is deleted.
    #[serde(default)]
    pub disabled: bool,
    /// Requests of any kind: of all coordinators that share a Redis, else at each.
    pub requests_per_second: Option<u32>,
    /// Tokens read and written by language models: of all coordinators that share a Redis, else at each.
    pub tokens_per_minute: Option<u32>,
    /// Streams open at one time, at each coordinator.
    pub streams_max: Option<u32>,
    /// Bytes of its uploaded documents.
    pub stored_bytes_max: Option<u64>,
}

/// A tenant as it is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TenantReply {
    /// Its name.
    pub tenant: String,
    /// Its keys are refused.
    pub disabled: bool,
    /// Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u32>,
    /// Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u32>,
    /// Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams_max: Option<u32>,
    /// Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_bytes_max: Option<u64>,
    /// Bytes of its uploaded documents now.
    pub stored_bytes: u64,
    /// Unix milliseconds.
    pub created_ms: i64,
}

/// A page of tenants.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TenantsReply {
    /// By name.
    pub tenants: Vec<TenantReply>,
    /// Give it as `cursor` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Which page.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Rows, 1 to 1000; 100 if not given.
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    pub cursor: Option<String>,
}

/// Which days.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsageQuery {
    /// Days since 1970; the first of all if not given.
    pub first_day: Option<i64>,
    /// Days since 1970, included; today if not given.
    pub last_day: Option<i64>,
}

/// What a tenant used.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct UsageReply {
    /// Whose.
    pub tenant: String,
    /// Bytes of its uploaded documents now.
    pub stored_bytes: u64,
    /// Per day and model, in the order of days, at most 1000.
    pub days: Vec<UsageDay>,
}

/// One day with one model.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct UsageDay {
    /// Days since 1970.
    pub day: i64,
    /// The model.
    pub model: String,
    /// Answers.
    pub requests: u64,
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
}

/// Errors name the field.
pub(super) fn check_tenant_name(path: &str, tenant: &str) -> Result<()> {
    // The rule of tenants is that of document keys, which carry them.
    DocumentKey::with_tenant(tenant, "x").map(drop).map_err(|error| {
        Error::field(
            path,
            error.to_string(),
            format!("use 1 to {} bytes without control characters", limits::TENANT_BYTES_MAX),
        )
    })
}

pub(super) fn no_such_tenant(tenant: &str) -> Error {
    let hint = "make it with PUT /api/v1/tenants/{tenant}, or: susui tenant set";
    Error::refused(ErrorKind::NotFound, format!("tenant {tenant:?} does not exist"), hint)
}

/// Makes a tenant, or replaces its settings. Safe to repeat.
#[utoipa::path(put, path = "/api/v1/tenants/{tenant}", tag = "tenants", request_body = TenantBody,
    params(("tenant" = String, Path, description = "its name")),
    responses((status = 200, body = TenantReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn put_tenant(
    State(services): State<Arc<Services>>,
    Path(tenant): Path<String>,
    StrictJson(body): StrictJson<TenantBody>,
) -> ApiResult<Response> {
    check_tenant_name("tenant", &tenant)?;
    for (field, bound) in [
        ("requests_per_second", body.requests_per_second),
        ("tokens_per_minute", body.tokens_per_minute),
        ("streams_max", body.streams_max),
    ] {
        if bound == Some(0) {
            return Err(Error::field(field, "0 lets nothing through", "use disabled, or leave it out").into());
        }
    }
    let limits = TenantLimits {
        requests_per_second: body.requests_per_second,
        tokens_per_minute: body.tokens_per_minute,
        streams_max: body.streams_max,
        stored_bytes_max: body.stored_bytes_max,
    };
    let row = services.catalog.put_tenant(&tenant, body.disabled, limits).await?;
    services.tenants.forget();
    Ok(json(StatusCode::OK, &tenant_reply(row)))
}

/// A tenant.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = String, Path, description = "its name")),
    responses((status = 200, body = TenantReply), (status = "4XX", body = ErrorBody)))]
pub async fn get_tenant(State(services): State<Arc<Services>>, Path(tenant): Path<String>) -> ApiResult<Response> {
    let row = services.catalog.tenant(&tenant).await?.ok_or_else(|| no_such_tenant(&tenant))?;
    Ok(json(StatusCode::OK, &tenant_reply(row)))
}

/// Tenants by name.
#[utoipa::path(get, path = "/api/v1/tenants", tag = "tenants", params(PageQuery),
    responses((status = 200, body = TenantsReply), (status = "4XX", body = ErrorBody)))]
pub async fn list_tenants(
    State(services): State<Arc<Services>>,
    StrictQuery(query): StrictQuery<PageQuery>,
) -> ApiResult<Response> {
    let limit = page_limit(query.limit)?;
    let mut rows = services.catalog.tenants(&query.cursor.unwrap_or_default(), limit + 1).await?;
    let has_more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows.last().filter(|_| has_more).map(|row| row.tenant.clone());
    let tenants = rows.into_iter().map(tenant_reply).collect();
    Ok(json(StatusCode::OK, &TenantsReply { tenants, next_cursor }))
}

/// What a tenant used. A tenant may ask for itself; an operator for any.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/usage", tag = "tenants",
    params(("tenant" = String, Path, description = "its name"), UsageQuery),
    responses((status = 200, body = UsageReply), (status = "4XX", body = ErrorBody)))]
pub async fn get_usage(
    State(services): State<Arc<Services>>,
    caller: Caller,
    Path(tenant): Path<String>,
    StrictQuery(query): StrictQuery<UsageQuery>,
) -> ApiResult<Response> {
    if *caller.tenant != *tenant {
        caller.check(Scope::Admin)?;
    }
    let row = services.catalog.tenant(&tenant).await?.ok_or_else(|| no_such_tenant(&tenant))?;
    let (first, last) = (query.first_day.unwrap_or(0), query.last_day.unwrap_or(i64::MAX));
    let days = services.catalog.usage(&tenant, first, last, limits::PAGE_ROWS_MAX).await?;
    let days = days.into_iter().map(usage_day).collect();
    Ok(json(StatusCode::OK, &UsageReply { tenant, stored_bytes: row.stored_bytes, days }))
}

fn tenant_reply(row: TenantRow) -> TenantReply {
    TenantReply {
        tenant: row.tenant,
        disabled: row.disabled,
        requests_per_second: row.limits.requests_per_second,
        tokens_per_minute: row.limits.tokens_per_minute,
        streams_max: row.limits.streams_max,
        stored_bytes_max: row.limits.stored_bytes_max,
        stored_bytes: row.stored_bytes,
        created_ms: row.created_ms,
    }
}

fn usage_day(row: UsageRow) -> UsageDay {
    UsageDay {
        day: row.day,
        model: row.model,
        requests: row.requests,
        prompt_tokens: row.prompt_tokens,
        completion_tokens: row.completion_tokens,
    }
}
