//! Tokens on their way into the catalog: added up in memory, stored once a second in one transaction.
//!
//! What the last second used is lost if the process is killed; a stop stores it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cluster_config::limits;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::catalog::tenants::UsageRow;
use crate::clock::unix_ms;

const STORE_INTERVAL: Duration = Duration::from_secs(1);
const DAY_MS: i64 = 24 * 3600 * 1000;
/// What models are counted under when there are too many of them.
const OTHER_MODELS: &str = "other";

/// Tenant, day, model.
type Account = (Arc<str>, i64, String);

/// Sums by account.
#[derive(Default)]
pub(super) struct UsageBuffer {
    sums: Mutex<BTreeMap<Account, Counts>>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    requests: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl UsageBuffer {
    /// Adds one answer.
    pub(super) fn add(&self, tenant: &Arc<str>, model: &str, prompt_tokens: u64, completion_tokens: u64) {
        let day = unix_ms() / DAY_MS;
        self.put((Arc::clone(tenant), day, model.to_owned()), Counts { requests: 1, prompt_tokens, completion_tokens });
    }

    fn put(&self, key: Account, more: Counts) {
        let mut sums = self.sums.lock();
        let key = match sums.len() < limits::USAGE_ROWS_PENDING_MAX || sums.contains_key(&key) {
            true => key,
            false => (key.0, key.1, OTHER_MODELS.to_owned()),
        };
        let sum = sums.entry(key).or_default();
        sum.requests += more.requests;
        sum.prompt_tokens += more.prompt_tokens;
        sum.completion_tokens += more.completion_tokens;
    }

    /// Stores every second until cancelled, and once more then.
    pub(super) async fn run(&self, catalog: &Catalog, cancel: CancellationToken) {
        loop {
            let is_last = tokio::time::timeout(STORE_INTERVAL, cancel.cancelled()).await.is_ok();
            self.store(catalog).await;
            if is_last {
                return;
            }
        }
    }

    async fn store(&self, catalog: &Catalog) {
        let taken = std::mem::take(&mut *self.sums.lock());
        if taken.is_empty() {
            return;
        }
        let row = |((tenant, day, model), counts): (&(Arc<str>, i64, String), &Counts)| UsageRow {
            tenant: tenant.to_string(),
            day: *day,
            model: model.clone(),
            requests: counts.requests,
            prompt_tokens: counts.prompt_tokens,
            completion_tokens: counts.completion_tokens,
        };
        let rows: Vec<UsageRow> = taken.iter().map(row).collect();
        if let Err(error) = catalog.add_usage(&rows).await {
            tracing::warn!(%error, rows = rows.len(), "usage was not stored; it is tried again");
            taken.into_iter().for_each(|(key, counts)| self.put(key, counts));
        }
    }
}
