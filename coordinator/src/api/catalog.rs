//! `GET /api/v1/catalog`, `POST /api/v1/catalog/upkeep`: the database behind the catalog, for operators.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::{ApiResult, ErrorBody};
use super::json::json;
use crate::catalog::upkeep::Task;
use crate::services::Services;

/// The catalog's database.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CatalogReply {
    /// `sqlite` or `postgres`.
    pub engine: &'static str,
    /// This coordinator's connections.
    pub pool: PoolReply,
    /// Regular tasks.
    pub upkeep: Vec<UpkeepReply>,
    /// The server's settings that `susui doctor` judges.
    pub settings: Vec<SettingReply>,
}

/// Connections.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct PoolReply {
    /// Open.
    pub open: u32,
    /// Open and not in use.
    pub idle: u32,
    /// The bound: size and overflow.
    pub max: u32,
    /// Waits for one that ended with a 503, since start.
    pub timeouts: u64,
}

/// A regular task.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct UpkeepReply {
    /// Its name.
    pub task: String,
    /// When it was done last, Unix milliseconds; 0: never.
    pub ran_ms: i64,
}

/// A setting as the server holds it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SettingReply {
    /// Its name.
    pub name: String,
    /// Its value, in `unit`.
    pub value: String,
    /// As Postgres says: `8kB`, `kB`, `MB`, `ms`, or empty.
    pub unit: String,
}

/// The catalog's database: connections, upkeep, settings.
#[utoipa::path(get, path = "/api/v1/catalog", tag = "cluster", responses((status = 200, body = CatalogReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn get_catalog(State(services): State<Arc<Services>>) -> ApiResult<Response> {
    reply(&services).await
}

/// Does the regular tasks now: forgets what is old, counts anew, frees space, renews statistics. Safe to repeat.
#[utoipa::path(post, path = "/api/v1/catalog/upkeep", tag = "cluster", responses((status = 200, body = CatalogReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn post_upkeep(State(services): State<Arc<Services>>) -> ApiResult<Response> {
    for task in Task::ALL {
        services.catalog.upkeep_now(task).await?;
    }
    reply(&services).await
}

async fn reply(services: &Services) -> ApiResult<Response> {
    let counts = services.catalog.pool_counts();
    let upkeep = services.catalog.upkeep_runs().await?;
    let settings = services.catalog.server_settings().await?;
    let reply = CatalogReply {
        engine: services.catalog.engine().as_str(),
        pool: PoolReply { open: counts.open, idle: counts.idle, max: counts.max, timeouts: counts.timeouts },
        upkeep: upkeep.into_iter().map(|(task, ran_ms)| UpkeepReply { task, ran_ms }).collect(),
        settings: settings.into_iter().map(|(name, value, unit)| SettingReply { name, value, unit }).collect(),
    };
    Ok(json(StatusCode::OK, &reply))
}
