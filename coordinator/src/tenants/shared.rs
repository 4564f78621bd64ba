//! What all coordinators together leave of a tenant's allowances, in Redis where one is configured.
//!
//! Each coordinator's own count is asked first and goes on to hold while Redis does not answer: then N coordinators let through up to N
//! times the limit. What Redis knows is one time per allowance, that at which it will be full again; so a tenant that is idle takes no room.

use std::sync::Arc;
use std::time::Duration;

use super::allowance::Rate;
use crate::cache::redis::SharedCache;

/// Takes `ARGV[4]` if `ARGV[3]` are there, and otherwise gives the milliseconds until they are. `ARGV[1]`: milliseconds in which one comes
/// back, `ARGV[2]`: how many there are at most. By the server's clock: coordinators need not agree on the time.
const TAKE: &str = r"
local interval, most, needed, taken = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local full_at = math.max(now, tonumber(redis.call('GET', KEYS[1])) or 0)
local wait = full_at - now - (most - needed) * interval
if needed > 0 and wait > 0 then return math.ceil(wait) end
if taken > 0 then
  full_at = full_at + taken * interval
  redis.call('SET', KEYS[1], string.format('%.3f', full_at), 'PX', string.format('%d', math.ceil(full_at - now)))
end
return 0";

/// The allowances of all tenants.
pub(super) struct SharedAllowances(pub(super) Option<SharedCache>);

impl SharedAllowances {
    /// Takes one, or says when there will be one.
    pub(super) async fn take_one(&self, tenant: &Arc<str>, what: &str, rate: Rate) -> Result<(), Duration> {
        self.ask(tenant, what, rate, 1).await
    }

    /// Whether there is one; otherwise when there will be.
    pub(super) async fn check_one(&self, tenant: &Arc<str>, what: &str, rate: Rate) -> Result<(), Duration> {
        self.ask(tenant, what, rate, 0).await
    }

    /// Takes what was used, soon, whether it is there or not.
    pub(super) fn charge(&self, tenant: &Arc<str>, what: &str, rate: Rate, amount: u64) {
        if let Some(redis) = &self.0 {
            redis.eval_later(&name(tenant, what), TAKE, arguments(rate, 0, amount));
        }
    }

    async fn ask(&self, tenant: &Arc<str>, what: &str, rate: Rate, taken: u64) -> Result<(), Duration> {
        let Some(redis) = &self.0 else { return Ok(()) };
        match redis.eval(&name(tenant, what), TAKE, &arguments(rate, 1, taken)).await {
            Some(wait_ms) if wait_ms > 0 => Err(Duration::from_millis(wait_ms.unsigned_abs())),
            Some(_) | None => Ok(()),
        }
    }
}

fn name(tenant: &str, what: &str) -> String {
    format!("allowance:{what}:{tenant}")
}

fn arguments(rate: Rate, needed: u64, taken: u64) -> Vec<String> {
    let interval_ms = rate.period.as_secs_f64() * 1000.0 / f64::from(rate.bound);
    vec![interval_ms.to_string(), rate.bound.to_string(), needed.to_string(), taken.to_string()]
}
