//! The shared tier: a Redis or a Redis Cluster that all coordinators of a cluster use.
//!
//! Promises: a request waits for it at most the configured few milliseconds per lookup; slow, dead or wrong Redis is never an error, only
//! a miss; while it fails, requests do not ask at all, and it is taken back into use by itself. Writes happen behind the request's
//! back. It only stores: whether a value may still be served is decided by whoever reads it.
//!
//! Names in Redis: `susui:CLUSTER:KIND:KEY`, for single flight `susui:CLUSTER:lease:KEY`, and what tenants may still use
//! (`tenants/shared`) `susui:CLUSTER:allowance:...`.

mod breaker;
mod connection;
mod frame;
mod keeper;
mod leases;
mod writer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use cluster_config::cache_config::RedisConfig;
use cluster_config::limits;
use parking_lot::Mutex;
use redis::Cmd;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::breaker::Breaker;
use self::connection::Connection;
pub use self::leases::{Lease, Leased, Term};
use self::writer::{Job, Queue, Writes};
use super::key::CacheKey;
use super::metrics::{CacheMetrics, Kind};

/// The handle that requests use. Clones share everything.
#[derive(Clone)]
pub struct SharedCache {
    link: Arc<Link>,
    queue: Queue,
    timeout: Duration,
    ttl: Duration,
}

/// What keeps it going: connects, probes, writes. [`SharedWorker::run`] is spawned once.
pub struct SharedWorker {
    urls: Vec<String>,
    link: Arc<Link>,
    writes: Writes,
}

/// The connection as requests see it.
struct Link {
    /// First part of every name.
    prefix: String,
    connection: ArcSwapOption<Connection>,
    breaker: Mutex<Breaker>,
    /// Told when the breaker opens.
    opened: Notify,
    /// A name that a read failed for: the probe asks for it, so that it sees what the read saw.
    suspect: Mutex<String>,
    metrics: CacheMetrics,
}

impl SharedCache {
    /// The tier of the cluster named `cluster_id`; entries live for `ttl`. Nothing is connected until the worker runs.
    pub fn new(config: &RedisConfig, cluster_id: &str, ttl: Duration, metrics: CacheMetrics) -> (Self, SharedWorker) {
        let link = Arc::new(Link {
            prefix: format!("susui:{cluster_id}"),
            connection: ArcSwapOption::empty(),
            breaker: Mutex::default(),
            opened: Notify::new(),
            suspect: Mutex::new(format!("susui:{cluster_id}:probe")),
            metrics: metrics.clone(),
        });
        let (queue, writes) = writer::queue(metrics);
        let worker = SharedWorker { urls: config.urls.clone(), link: Arc::clone(&link), writes };
        (Self { link, queue, timeout: config.timeout, ttl }, worker)
    }

    /// The payload stored under the key, if Redis has one of ours and says so in time.
    pub async fn get(&self, kind: Kind, key: &CacheKey) -> Option<Vec<u8>> {
        let name = self.link.name(kind, key);
        // A range, so that whatever lies under our name, no more than we would store is read.
        let command = redis::cmd("GETRANGE").arg(&name).arg(0).arg(limits::REDIS_VALUE_BYTES_MAX).to_owned();
        let value: Vec<u8> = match self.ask(&name, &command).await? {
            Ok(value) => value,
            Err(NotOurs) => return None,
        };
        if value.is_empty() {
            return None;
        }
        let payload = frame::unseal(kind, key, value);
        if payload.is_none() {
            self.link.metrics.redis_foreign();
        }
        payload
    }

    /// Stores a payload, soon; dropped where it is too large, where too much waits, or where Redis is down.
    pub fn put(&self, kind: Kind, key: &CacheKey, payload: &[u8]) {
        if payload.len() + frame::HEAD_BYTES > limits::REDIS_VALUE_BYTES_MAX || self.link.is_open() {
            self.link.metrics.redis_wrote("dropped");
            return;
        }
        let value = frame::seal(kind, key, payload);
        self.queue.push(Job::Put { name: self.link.name(kind, key), value, ttl: self.ttl });
    }

    /// Drops an entry, soon.
    pub fn remove(&self, kind: Kind, key: &CacheKey) {
        if !self.link.is_open() {
            self.queue.push(Job::Remove { name: self.link.name(kind, key) });
        }
    }

    /// The number that a script of ours makes of `susui:CLUSTER:NAME`, if Redis says so in time.
    pub async fn eval(&self, name: &str, script: &'static str, arguments: &[String]) -> Option<i64> {
        let name = format!("{}:{name}", self.link.prefix);
        self.ask(&name, &writer::eval(script, &name, arguments)).await?.ok()
    }

    /// Runs the script, soon; not at all where too much waits or Redis is down.
    pub fn eval_later(&self, name: &str, script: &'static str, arguments: Vec<String>) {
        if !self.link.is_open() {
            self.queue.push(Job::Eval { script, name: format!("{}:{name}", self.link.prefix), arguments });
        }
    }

    /// Sends a command that a request waits for. `None`: no answer in time, or Redis is thought to be down.
    async fn ask<T: redis::FromRedisValue>(&self, name: &str, command: &Cmd) -> Option<Result<T, NotOurs>> {
        let connection = self.link.connection.load_full().filter(|_| !self.link.is_open());
        let Some(connection) = connection else {
            self.link.metrics.redis_skipped();
            return None;
        };
        let began = Instant::now();
        let answer = tokio::time::timeout(self.timeout, connection.run::<T>(command)).await;
        self.link.metrics.redis_read(began.elapsed());
        match answer {
            Ok(Ok(answer)) => {
                self.link.note_success();
                Some(Ok(answer))
            }
            // The server is well; somebody else's list or set lies under our name.
            Ok(Err(error)) if error.code() == Some("WRONGTYPE") => {
                self.link.note_success();
                self.link.metrics.redis_foreign();
                Some(Err(NotOurs))
            }
            Ok(Err(_)) | Err(_) => {
                self.link.note_failure(name);
                None
            }
        }
    }
}

impl SharedWorker {
    /// Connects, takes Redis out of use and back, and writes, until cancelled. What waits to be written then is forgotten.
    pub async fn run(self, cancel: CancellationToken) {
        let work = futures::future::join(keeper::keep(&self.link, &self.urls), self.writes.run(&self.link));
        tokio::select! {
            _ = work => {}
            () = cancel.cancelled() => {}
        }
    }
}

/// Something lies under the name that we would not have put there.
struct NotOurs;

impl Link {
    fn name(&self, kind: Kind, key: &CacheKey) -> String {
        format!("{}:{}:{key}", self.prefix, kind.as_str())
    }

    fn is_open(&self) -> bool {
        self.breaker.lock().is_open()
    }

    fn note_success(&self) {
        self.breaker.lock().note(false);
    }

    fn note_failure(&self, name: &str) {
        self.metrics.redis_failed();
        name.clone_into(&mut self.suspect.lock());
        if self.breaker.lock().note(true) {
            self.metrics.redis_is_up(false);
            tracing::warn!("Redis fails or is slow; requests go on without it");
            self.opened.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
