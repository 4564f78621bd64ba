//! Leases: of all coordinators one computes what belongs under a key, the others wait for it.

use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::writer::{Job, Queue};
use super::{NotOurs, SharedCache};
use crate::cache::key::CacheKey;

/// A renewed lease is renewed so often within its life: a renewal may be lost, or late.
const RENEWALS_PER_LIFE: u32 = 3;
/// Prolongs a lease that is still the caller's own.
const RENEW: &str =
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) else return 0 end";
/// Deletes a lease that is still the caller's own.
const RELEASE: &str =
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end";

/// How long a lease holds that nobody gives back.
#[derive(Clone, Copy, Debug)]
pub enum Term {
    /// So long, whether its owner lives or not.
    Fixed(Duration),
    /// As long as its owner lives, and so long after it died.
    Renewed(Duration),
}

/// Who may compute.
pub enum Leased {
    /// The caller; for as long as it holds the lease, others wait for its result.
    Mine(Lease),
    /// Another coordinator is at it.
    Theirs,
    /// Redis does not say.
    Unknown,
}

/// The right to compute, given back when dropped; a dead owner's ends by itself.
pub struct Lease {
    name: String,
    token: String,
    queue: Queue,
    _renewal: Option<AbortOnDropHandle<()>>,
}

impl SharedCache {
    /// The right to compute what belongs under the key, among all coordinators.
    pub async fn lease(&self, key: &CacheKey, term: Term) -> Leased {
        let name = format!("{}:lease:{key}", self.link.prefix);
        let token = Uuid::new_v4().simple().to_string();
        let (Term::Fixed(life) | Term::Renewed(life)) = term;
        let command = redis::cmd("SET").arg(&name).arg(&token).arg("NX").arg("PX").arg(millis(life)).to_owned();
        match self.ask::<Option<String>>(&name, &command).await {
            Some(Ok(Some(_))) => Leased::Mine(self.own(name, token, term)),
            Some(Ok(None)) => Leased::Theirs,
            Some(Err(NotOurs)) | None => Leased::Unknown,
        }
    }

    fn own(&self, name: String, token: String, term: Term) -> Lease {
        let queue = self.queue.clone();
        let renewal = match term {
            Term::Fixed(_) => None,
            Term::Renewed(life) => {
                let renewal = renew(queue.clone(), name.clone(), token.clone(), life);
                Some(AbortOnDropHandle::new(tokio::spawn(renewal)))
            }
        };
        Lease { name, token, queue, _renewal: renewal }
    }
}

/// Runs until dropped.
async fn renew(queue: Queue, name: String, token: String, life: Duration) {
    loop {
        tokio::time::sleep(life / RENEWALS_PER_LIFE).await;
        let arguments = vec![token.clone(), millis(life).to_string()];
        queue.push(Job::Eval { script: RENEW, name: name.clone(), arguments });
    }
}

fn millis(life: Duration) -> u64 {
    life.as_millis() as u64
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (name, token) = (std::mem::take(&mut self.name), std::mem::take(&mut self.token));
        self.queue.push(Job::Eval { script: RELEASE, name, arguments: vec![token] });
    }
}
