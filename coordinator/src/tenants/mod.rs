//! Who calls, what they may do, and how much of it.
//!
//! Promises: every request that reaches a handler has one [`Caller`]; whatever is read or written for it carries the caller's tenant.
//! Where keys are not required, everybody is the tenant `default` with every right. Requests and tokens are counted by each coordinator
//! and, where there is a Redis, over all of them together; streams by each alone; stored bytes by the catalog.

mod allowance;
mod caller;
mod meter;
mod remembered;
mod shared;
mod usage;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use cluster_config::error::ErrorKind;
use cluster_config::ids::DEFAULT_TENANT;
use cluster_config::limits;
use moka::sync::Cache;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use self::allowance::Rate;
pub use self::caller::{Caller, Scope};
use self::meter::Meter;
pub use self::meter::{LimitMet, StreamPlace};
use self::remembered::Remembered;
use self::shared::SharedAllowances;
use self::usage::UsageBuffer;
use crate::cache::redis::SharedCache;
use crate::catalog::keys::KeyRow;
use crate::catalog::tenants::{TenantLimits, TenantRow};
use crate::catalog::{Catalog, CatalogError};
use crate::error::{Error, Result};

/// What every key of ours begins with, so that a leaked one is recognised for what it is.
const KEY_PREFIX: &str = "susui_";
/// Header for keys besides `Authorization: Bearer`.
const KEY_HEADER: &str = "x-api-key";
/// A tenant that sent nothing for this long starts with full allowances again.
const METER_IDLE: Duration = Duration::from_secs(3600);

/// Names of allowances that coordinators share.
const REQUESTS: &str = "requests";
const TOKENS: &str = "tokens";

/// How callers are told apart.
#[derive(Clone, Debug, Default)]
pub struct TenantOptions {
    /// Requests without a key are refused.
    pub keys_required: bool,
    /// SHA-256 of the operator's own key.
    pub operator_key_hash: Option<[u8; 32]>,
}

/// Tells callers apart and holds them to their limits.
pub struct Tenants {
    catalog: Catalog,
    options: TenantOptions,
    keys: Remembered<[u8; 32], KnownKey>,
    rows: Remembered<Arc<str>, TenantRow>,
    meters: Cache<Arc<str>, Arc<Meter>>,
    shared: SharedAllowances,
    usage: UsageBuffer,
}

/// A key as it was read.
#[derive(Clone)]
struct KnownKey {
    row: KeyRow,
    /// Before it was read: what is measured from here is never shorter than what has passed on the database's clock since.
    asked_at: Instant,
}

impl KnownKey {
    fn is_valid(&self) -> bool {
        self.row.is_valid_after(self.asked_at.elapsed())
    }
}

/// The SHA-256 under which a key is known.
pub fn key_hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// A new key: 32 random bytes.
pub fn new_key() -> String {
    let secret: [u8; 32] = rand::random();
    secret.iter().fold(KEY_PREFIX.to_owned(), |key, byte| format!("{key}{byte:02x}"))
}

impl Tenants {
    /// Usage is written by [`Tenants::run`]; `redis` is where coordinators count together.
    pub fn new(catalog: Catalog, options: TenantOptions, redis: Option<SharedCache>) -> Self {
        let meters = Cache::builder().max_capacity(limits::TENANTS_METERED_MAX).time_to_idle(METER_IDLE).build();
        Self {
            catalog,
            options,
            keys: Remembered::new(limits::KEYS_REMEMBERED_MAX),
            rows: Remembered::new(limits::TENANTS_METERED_MAX),
            meters,
            shared: SharedAllowances(redis),
            usage: UsageBuffer::default(),
        }
    }

    /// Who sends a request with these headers. Errors: `Unauthenticated`, `PermissionDenied` (tenant disabled), the catalog's.
    pub async fn identify(&self, headers: &HeaderMap) -> Result<Caller> {
        // Clients of the front doors send any key where none is required: only one of ours is looked at then.
        let key = given_key(headers).filter(|key| self.options.keys_required || key.starts_with(KEY_PREFIX));
        let Some(key) = key else {
            if self.options.keys_required {
                let hint = "send Authorization: Bearer KEY; an operator makes keys with: susui key create";
                return Err(Error::refused(ErrorKind::Unauthenticated, "the request has no key", hint));
            }
            let limits = self.tenant(DEFAULT_TENANT).await?.map(|row| row.limits).unwrap_or_default();
            return Ok(Caller { limits, ..Caller::open() });
        };
        let hash = key_hash(key);
        if self.options.operator_key_hash == Some(hash) {
            return Ok(Caller::open());
        }
        let known = self.keys.get(hash, self.known_key(&hash)).await?;
        let Some(KnownKey { row: known, .. }) = known.filter(KnownKey::is_valid) else {
            let text = "the key is unknown, expired or revoked";
            return Err(Error::refused(ErrorKind::Unauthenticated, text, "ask the operator for a new key"));
        };
        let Some(row) = self.tenant(&known.tenant).await?.filter(|row| !row.disabled) else {
            let text = format!("the tenant {:?} is disabled", known.tenant);
            return Err(Error::refused(ErrorKind::PermissionDenied, text, "ask the operator"));
        };
        Ok(Caller { tenant: known.tenant.into(), scope: known.scope, key_id: Some(known.key_id), limits: row.limits })
    }

    /// Counts a request. Errors: `RateLimited`.
    pub async fn admit(&self, caller: &Caller) -> Result<()> {
        let Some(rate) = requests_rate(&caller.limits) else { return Ok(()) };
        let met = |retry_after| LimitMet { what: "requests per second", bound: rate.bound, retry_after };
        self.meter(caller).take_request(rate).map_err(met)?;
        Ok(self.shared.take_one(&caller.tenant, REQUESTS, rate).await.map_err(met)?)
    }

    /// A place for a stream, given back when dropped. To be asked for before anything is begun. Errors: `RateLimited`.
    pub fn open_stream(&self, caller: &Caller) -> Result<StreamPlace> {
        Ok(self.meter(caller).open_stream(&caller.limits)?)
    }

    /// Whether a model may be asked: the tokens of the last minute are below the bound. Errors: `RateLimited`.
    pub async fn check_tokens(&self, caller: &Caller) -> Result<()> {
        let Some(rate) = tokens_rate(&caller.limits) else { return Ok(()) };
        let met = |retry_after| LimitMet { what: "tokens per minute", bound: rate.bound, retry_after };
        self.meter(caller).check_tokens(rate).map_err(met)?;
        Ok(self.shared.check_one(&caller.tenant, TOKENS, rate).await.map_err(met)?)
    }

    /// Notes what an answer or an embedding took. Never waits: it is counted at once, for the other coordinators within moments, and
    /// stored within a second.
    pub fn record_tokens(&self, caller: &Caller, model: &str, prompt_tokens: u64, completion_tokens: u64) {
        if let Some(rate) = tokens_rate(&caller.limits) {
            let tokens = prompt_tokens + completion_tokens;
            self.meter(caller).charge_tokens(rate, tokens);
            self.shared.charge(&caller.tenant, TOKENS, rate, tokens);
        }
        self.usage.add(&caller.tenant, model, prompt_tokens, completion_tokens);
    }

    /// After a change of tenants or keys through this coordinator: it holds from the next request on.
    pub fn forget(&self) {
        self.keys.forget_all();
        self.rows.forget_all();
    }

    /// Stores usage every second until cancelled, and what is left then.
    pub async fn run(&self, cancel: CancellationToken) {
        self.usage.run(&self.catalog, cancel).await;
    }

    async fn known_key(&self, hash: &[u8; 32]) -> Result<Option<KnownKey>, CatalogError> {
        let asked_at = Instant::now();
        Ok(self.catalog.key_by_hash(hash).await?.map(|row| KnownKey { row, asked_at }))
    }

    async fn tenant(&self, tenant: &str) -> Result<Option<TenantRow>, CatalogError> {
        self.rows.get(tenant.into(), self.catalog.tenant(tenant)).await
    }

    fn meter(&self, caller: &Caller) -> Arc<Meter> {
        self.meters.get_with(Arc::clone(&caller.tenant), Arc::default)
    }
}

fn requests_rate(limits: &TenantLimits) -> Option<Rate> {
    Some(Rate { bound: limits.requests_per_second?, period: Duration::from_secs(1) })
}

fn tokens_rate(limits: &TenantLimits) -> Option<Rate> {
    Some(Rate { bound: limits.tokens_per_minute?, period: Duration::from_secs(60) })
}

/// The key that the headers carry.
fn given_key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    let own = || headers.get(KEY_HEADER).and_then(|value| value.to_str().ok()).map(str::trim);
    bearer.or_else(own).filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_from_either_header() {
        let read = |name: &str, value: &str| {
            let mut headers = HeaderMap::new();
            headers
                .insert(header::HeaderName::from_bytes(name.as_bytes()).expect("name"), value.parse().expect("value"));
            given_key(&headers).map(str::to_owned)
        };
        assert_eq!(read("authorization", "Bearer k").as_deref(), Some("k"));
        assert_eq!(read("authorization", "bearer  k ").as_deref(), Some("k"));
        assert_eq!(read("x-api-key", "k").as_deref(), Some("k"));
        for (name, value) in
            [("authorization", "Basic k"), ("authorization", "k"), ("authorization", "Bearer "), ("x-api-key", "")]
        {
            assert_eq!(read(name, value), None, "{name}: {value}");
        }
    }

    #[test]
    fn keys_are_long_and_differ() {
        let (first, second) = (new_key(), new_key());
        assert_eq!(first.len(), KEY_PREFIX.len() + 64);
        assert_ne!(key_hash(&first), key_hash(&second));
    }
}
