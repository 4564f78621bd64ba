//! Versioned documents: a document is a point whose text names its key and version, so that whoever finds it knows which put it
//! sees. Every call goes into the history.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::{Answer, Client};
use crate::history::{Action, History, Key, Level, Operation, Outcome, Version};
use crate::vectors::unit_vector;

/// Stands for a hit that is not what any put wrote; no put has it.
pub(super) const GARBLED: Version = Version::MAX;
/// Searches sent at once when everything is read back.
const SEARCHES_PER_CALL: usize = 128;
/// How old a read at level bounded may be: nothing shorter is answered by a copy on its own word.
pub const MAX_STALENESS: Duration = Duration::from_secs(1);
/// Results looked through for a document's own vector.
const OWN_VECTOR_TOP_K: u64 = 3;

/// Gives out keys and versions, each once.
#[derive(Debug, Default)]
pub struct Numbers {
    key: AtomicU64,
    version: AtomicU64,
}

impl Numbers {
    /// A key nobody uses yet.
    pub fn key(&self) -> Key {
        self.key.fetch_add(1, Ordering::Relaxed)
    }

    /// A version nobody has written.
    pub fn version(&self) -> Version {
        self.version.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// One process' way to the documents of a collection.
#[derive(Clone)]
pub struct Documents {
    /// The coordinator.
    pub client: Client,
    /// Collection of the documents.
    pub collection: String,
    /// Its dimension.
    pub dim: usize,
    /// Seed of the vectors.
    pub seed: u64,
    /// Deadline of each call.
    pub timeout_ms: u64,
    /// Where calls are recorded.
    pub history: Arc<History>,
    /// Who calls.
    pub process: u64,
    /// Copy that eventual and bounded reads are to ask first, as the API words it.
    pub prefer_copy: Option<String>,
}

/// A document as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its version; `None` where it was not there.
    pub version: Option<Version>,
    /// The token to send next.
    pub session: String,
}

/// What a collection of documents is made with, beside shards and copies.
pub fn collection(dim: usize, shards: u32, copies: usize) -> Value {
    json!({ "dim": dim, "shards": shards, "copies": copies, "fields": { "key": "integer" } })
}

impl Documents {
    fn vector(&self, key: Key) -> Vec<f32> {
        unit_vector(self.seed, key, self.dim)
    }

    fn point(&self, key: Key, version: Version, filler_bytes: usize) -> Value {
        let text = format!("{}{}", text(key, version), " ~".repeat(filler_bytes / 2));
        json!({ "id": id(key), "vector": self.vector(key), "text": text, "metadata": { "key": key } })
    }

    /// Puts versions of several documents in one call. Returns the session token where all were acknowledged.
    pub async fn put(&self, documents: &[(Key, Version)]) -> Option<String> {
        self.put_filled(documents, 0).await
    }

    /// The same with texts that are so much longer.
    pub async fn put_filled(&self, documents: &[(Key, Version)], filler_bytes: usize) -> Option<String> {
        let points: Vec<Value> =
            documents.iter().map(|(key, version)| self.point(*key, *version, filler_bytes)).collect();
        let body = json!({ "points": points, "timeout_ms": self.timeout_ms });
        let writes = documents.iter().map(|(key, version)| Action::Write { key: *key, version: Some(*version) });
        self.write(Method::PUT, "points", body, writes.collect()).await
    }

    /// The same where every one must be acknowledged. Errors: the answer to the last call that was not, as the history has it.
    pub async fn must_put(&self, documents: &[(Key, Version)]) -> anyhow::Result<String> {
        match self.put(documents).await {
            Some(session) => Ok(session),
            None => {
                let error = self.history.snapshot().into_iter().rev().find_map(|operation| operation.error);
                anyhow::bail!("not acknowledged: {}", error.unwrap_or_default())
            }
        }
    }

    /// Deletes a document. Returns the session token where that was acknowledged.
    pub async fn delete(&self, key: Key) -> Option<String> {
        let body = json!({ "ids": [id(key)], "timeout_ms": self.timeout_ms });
        self.write(Method::POST, "points:delete", body, vec![Action::Write { key, version: None }]).await
    }

    async fn write(&self, method: Method, verb: &str, body: Value, writes: Vec<Action>) -> Option<String> {
        let called_us = self.history.now_us();
        let path = format!("/api/v1/collections/{}/{verb}", self.collection);
        let answer = self.client.send(method, &path, Some(&body)).await;
        let answered_us = self.history.now_us();
        let (outcome, error) = judged(&answer);
        for action in writes {
            let error = error.clone();
            self.history.record(Operation { process: self.process, action, called_us, answered_us, outcome, error });
        }
        let answer = answer.ok().filter(|_| outcome == Outcome::Ok)?;
        answer.body["session"].as_str().map(str::to_owned)
    }

    /// Searches for a document by its own vector. `None`: no answer, or not a complete one.
    pub async fn read(&self, key: Key, level: Level, session: &str) -> Option<Found> {
        let mut body = self.search(key, level);
        body["timeout_ms"] = self.timeout_ms.into();
        if level == Level::Session {
            body["session"] = session.into();
            body["explain"] = true.into();
        }
        let called_us = self.history.now_us();
        let answer = self.client.send(Method::POST, "/api/v1/search", Some(&body)).await;
        let answered_us = self.history.now_us();
        let (mut outcome, mut error) = judged(&answer);
        let body = answer.ok().map(|answer| answer.body).unwrap_or_default();
        if outcome == Outcome::Ok && body["shards"]["ok"] != body["shards"]["total"] {
            (outcome, error) = (Outcome::Unknown, Some(format!("incomplete without an error: {}", body["shards"])));
        }
        let found = if outcome == Outcome::Ok { version_in(&body, key) } else { None };
        let record = |action, error| {
            let operation = Operation { process: self.process, action, called_us, answered_us, outcome, error };
            self.history.record(operation);
        };
        if level == Level::Session && outcome == Outcome::Ok {
            record(Action::Positions { sent: tokens(session), answered: positions(&body) }, None);
        }
        record(Action::Read { key, found, level }, error);
        (outcome == Outcome::Ok)
            .then(|| Found { version: found, session: body["session"].as_str().unwrap_or_default().to_owned() })
    }

    /// The body of a search. Reads that must be exact go through the `key` field: their cost does not grow with the collection.
    fn search(&self, key: Key, level: Level) -> Value {
        let mut body =
            json!({ "collection": self.collection, "vector": self.vector(key), "top_k": 1, "include": ["text"] });
        if matches!(level, Level::Eventual | Level::Bounded)
            && let Some(prefer_copy) = &self.prefer_copy
        {
            body["prefer_copy"] = prefer_copy.as_str().into();
        }
        match level {
            Level::Eventual => return body,
            Level::Bounded => body["max_staleness_ms"] = (MAX_STALENESS.as_millis() as u64).into(),
            Level::Session => body["consistency"] = "session".into(),
            Level::Strong | Level::Final => body["consistency"] = "strong".into(),
        }
        body["exact"] = true.into();
        body["filters"] = json!({ "must": [{ "field": "key", "eq": key }] });
        body
    }

    /// Reads documents back, many at once, at level final. Errors: one call was not answered completely.
    pub async fn read_back(&self, keys: &[Key]) -> anyhow::Result<()> {
        for keys in keys.chunks(SEARCHES_PER_CALL) {
            let searches = keys.iter().map(|key| self.search(*key, Level::Final)).collect();
            let called_us = self.history.now_us();
            let results = self.batch(searches).await?;
            let answered_us = self.history.now_us();
            for (key, result) in keys.iter().zip(&results) {
                let action = Action::Read { key: *key, found: version_in(result, *key), level: Level::Final };
                let (process, outcome) = (self.process, Outcome::Ok);
                self.history.record(Operation { process, action, called_us, answered_us, outcome, error: None });
            }
        }
        Ok(())
    }

    /// The documents that a plain search for their own vector finds among the first few.
    pub async fn found_by_vector(&self, keys: &[Key]) -> anyhow::Result<Vec<Key>> {
        let mut found = Vec::new();
        for keys in keys.chunks(SEARCHES_PER_CALL) {
            let search = |key: &Key| {
                let mut body = self.search(*key, Level::Eventual);
                body["top_k"] = OWN_VECTOR_TOP_K.into();
                body
            };
            let results = self.batch(keys.iter().map(search).collect()).await?;
            let is_in = |(key, result): &(&Key, &Value)| {
                let hits = result["hits"].as_array().map_or(&[][..], Vec::as_slice);
                hits.iter().any(|hit| hit["document_id"] == id(**key))
            };
            found.extend(keys.iter().zip(&results).filter(is_in).map(|(key, _)| *key));
        }
        Ok(found)
    }

    async fn batch(&self, searches: Vec<Value>) -> anyhow::Result<Vec<Value>> {
        let count = searches.len();
        let body = json!({ "searches": searches });
        let answer = self.client.send(Method::POST, "/api/v1/search:batch", Some(&body)).await?.ok()?;
        let results = answer["results"].as_array().context("no results")?;
        anyhow::ensure!(results.len() == count, "{} results for {count} searches", results.len());
        for result in results {
            anyhow::ensure!(result["shards"]["ok"] == result["shards"]["total"], "incomplete: {}", result["shards"]);
        }
        Ok(results.clone())
    }
}

/// The id of a document.
pub fn id(key: Key) -> String {
    format!("k{key}")
}

pub(super) fn text(key: Key, version: Version) -> String {
    format!("k{key} v{version}")
}

/// The version of the document that stands first, if it is the one asked for.
pub(super) fn version_in(body: &Value, key: Key) -> Option<Version> {
    let hit = body["hits"].get(0).filter(|hit| hit["document_id"] == id(key))?;
    Some(hit["text"].as_str().map_or(GARBLED, |text| version_of(text, key)))
}

/// The version whose text this is, or begins with: a mark of a source may follow.
pub(super) fn version_of(written: &str, key: Key) -> Version {
    let version = written.strip_prefix(&format!("k{key} v"));
    let digits = version.and_then(|version| version.split(|c: char| !c.is_ascii_digit()).next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(GARBLED)
}

/// Refusals of the request itself change nothing; whatever else went wrong says nothing about a write.
pub(super) fn judged(answer: &anyhow::Result<Answer>) -> (Outcome, Option<String>) {
    match answer {
        Ok(answer) if answer.status.is_success() => (Outcome::Ok, None),
        Ok(answer) => {
            let is_refusal = matches!(
                answer.status,
                StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::PAYLOAD_TOO_LARGE
            );
            let outcome = if is_refusal { Outcome::Failed } else { Outcome::Unknown };
            (outcome, Some(format!("{}: {}", answer.status, answer.body["error"]["message"])))
        }
        Err(error) => (Outcome::Unknown, Some(format!("{error:#}"))),
    }
}

/// A session token's parts: shard, lineage, seqno.
pub fn tokens(session: &str) -> Vec<(String, u64, u64)> {
    let part = |part: &str| {
        let mut fields = part.split(':');
        let (shard, lineage, seqno) = (fields.next()?, fields.next()?, fields.next()?);
        Some((shard.to_owned(), lineage.parse().ok()?, seqno.parse().ok()?))
    };
    session.strip_prefix("s1.").unwrap_or_default().split(',').filter_map(part).collect()
}

/// Where the copies that answered stood.
fn positions(body: &Value) -> Vec<(String, u64)> {
    let shards = body["explain"]["shards"].as_array().map_or(&[][..], Vec::as_slice);
    let position = |shard: &Value| Some((shard["shard"].as_str()?.to_owned(), shard["applied"].as_u64()?));
    shards.iter().filter_map(position).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_first_is_the_document_or_something_else() {
        let hit = |id: &str, text: &str| json!({ "hits": [{ "document_id": id, "text": text }] });
        assert_eq!(version_in(&hit("k7", "k7 v12"), 7), Some(12));
        assert_eq!(version_in(&hit("k8", "k8 v12"), 7), None);
        assert_eq!(version_in(&hit("k7", "k8 v12"), 7), Some(GARBLED), "another document's text");
        assert_eq!(version_in(&json!({ "hits": [] }), 7), None);
    }

    #[test]
    fn tokens_are_read_as_they_are_written() {
        assert_eq!(tokens("s1.1/0:0:15,1/3:2:7"), [("1/0".into(), 0, 15), ("1/3".into(), 2, 7)]);
        assert_eq!(tokens("s1."), []);
        assert_eq!(tokens(""), []);
    }
}
