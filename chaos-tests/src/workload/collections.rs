//! Collections come and go: created through one coordinator, deleted through another one, each name once.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::documents::judged;
use crate::client::Client;
use crate::history::{History, Outcome};

/// Between a creation and the deletion, and between that and the next creation.
const PAUSE: Duration = Duration::from_millis(700);
/// Attempts at a deletion, so that few collections stay behind.
const DELETIONS_MAX: usize = 3;

/// One call, or a few that are repeated until one is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Of the first.
    pub called_us: u64,
    /// Of the last.
    pub answered_us: u64,
    /// How the last ended.
    pub outcome: Outcome,
}

/// A collection's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// Its name; no other has it, ever.
    pub name: String,
    /// Its creation.
    pub created: Call,
    /// Its deletion.
    pub deleted: Call,
}

/// Creates through `creator` and deletes through `deleter` until `stop`, by the clock of `history`.
pub async fn run(creator: Client, deleter: Client, history: Arc<History>, stop: CancellationToken) -> Vec<Life> {
    let mut lives = Vec::new();
    while !stop.is_cancelled() {
        let name = format!("ledger-{}", lives.len());
        let path = format!("/api/v1/collections/{name}");
        let spec = json!({ "dim": 8, "shards": 1, "copies": 2 });
        let created = call(&creator, Method::PUT, &path, Some(&spec), &history).await;
        tokio::time::sleep(PAUSE).await;
        let mut deleted = call(&deleter, Method::DELETE, &path, None, &history).await;
        for _ in 1..DELETIONS_MAX {
            if deleted.outcome == Outcome::Ok {
                break;
            }
            let again = call(&deleter, Method::DELETE, &path, None, &history).await;
            deleted = Call { called_us: deleted.called_us, ..again };
        }
        lives.push(Life { name, created, deleted });
        tokio::time::sleep(PAUSE).await;
    }
    lives
}

async fn call(client: &Client, method: Method, path: &str, body: Option<&Value>, history: &History) -> Call {
    let called_us = history.now_us();
    let answer = client.send(method, path, body).await;
    let (outcome, _) = judged(&answer);
    Call { called_us, answered_us: history.now_us(), outcome }
}
