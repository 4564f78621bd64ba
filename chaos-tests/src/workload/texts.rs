//! Versioned documents again, uploaded as texts and asked about: a job, an embedding and a language model stand between a write and what is
//! read. The model has to answer with its first source ([`Script::quotes`](crate::llm::Script::quotes)), so that an answer tells which
//! version it was written from. Every call goes into the history.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use super::documents::{GARBLED, Numbers, id, judged, text, version_in, version_of};
use crate::client::{Answer, Client};
use crate::history::{Action, History, Key, Level, Operation, Outcome, Version};
use crate::wait;

/// Every so many writes the document is deleted instead.
const DELETE_EVERY: u64 = 4;
/// Until an upload's job has ended.
const JOB_WITHIN: Duration = Duration::from_secs(60);

/// One process' way to the documents of a collection.
#[derive(Clone)]
pub struct Texts {
    /// The coordinator.
    pub client: Client,
    /// Collection of the documents; it declares the integer field `key`.
    pub collection: String,
    /// Deadline of each read.
    pub timeout_ms: u64,
    /// Where calls are recorded.
    pub history: Arc<History>,
    /// Who calls.
    pub process: u64,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
enum Asked {
    /// Hits.
    Search,
    /// An answer.
    Query,
}

impl Texts {
    /// Uploads a version and follows its job. Returns the session token where it was acknowledged.
    pub async fn put(&self, key: Key, version: Version) -> Option<String> {
        let called_us = self.history.now_us();
        let indexed = self.index(key, version).await;
        self.written(key, Some(version), called_us, &indexed.map(Ok))
    }

    async fn index(&self, key: Key, version: Version) -> anyhow::Result<Value> {
        let body = json!({
            "id": id(key), "text": text(key, version), "metadata": { "key": key }, "collection": self.collection,
        });
        let accepted = self.client.send(Method::POST, "/api/v1/documents", Some(&body)).await?.ok()?;
        let path = format!("/api/v1/jobs/{}", accepted["job_id"].as_str().context("no job")?);
        let ended = wait::until("the job to end", JOB_WITHIN, || async {
            let job = self.client.send(Method::GET, &path, None).await?.ok()?;
            ensure!(job["terminal"] == true, "{job}");
            Ok(job)
        });
        let job = ended.await?;
        ensure!(job["status"] == "done", "{job}");
        Ok(job)
    }

    /// Deletes the document. Returns the session token where that was acknowledged.
    pub async fn delete(&self, key: Key) -> Option<String> {
        let called_us = self.history.now_us();
        let path = format!("/api/v1/documents/{}?collection={}", id(key), self.collection);
        let answer = self.client.send(Method::DELETE, &path, None).await;
        self.written(key, None, called_us, &answer.map(Answer::ok))
    }

    /// Records a write; its session token, if it was acknowledged.
    fn written(
        &self,
        key: Key,
        version: Option<Version>,
        called_us: u64,
        answer: &anyhow::Result<anyhow::Result<Value>>,
    ) -> Option<String> {
        let (outcome, error) = match answer {
            Ok(Ok(_)) => (Outcome::Ok, None),
            Ok(Err(error)) | Err(error) => (Outcome::Unknown, Some(format!("{error:#}"))),
        };
        self.record(Action::Write { key, version }, called_us, outcome, error);
        let reply = answer.as_ref().ok()?.as_ref().ok()?;
        reply["session"].as_str().map(str::to_owned)
    }

    fn record(&self, action: Action, called_us: u64, outcome: Outcome, error: Option<String>) {
        let (process, answered_us) = (self.process, self.history.now_us());
        self.history.record(Operation { process, action, called_us, answered_us, outcome, error });
    }

    /// Searches for the document and asks about it, in the same words.
    pub async fn read(&self, key: Key, words: &str, level: Level, session: &str) {
        for asked in [Asked::Search, Asked::Query] {
            let mut body = json!({
                "collection": self.collection, "query": words, "top_k": 1, "timeout_ms": self.timeout_ms,
                "filters": { "must": [{ "field": "key", "eq": key }] },
            });
            if level == Level::Session {
                body["consistency"] = "session".into();
                body["session"] = session.into();
            }
            let path = match asked {
                Asked::Search => "/api/v1/search",
                Asked::Query => "/api/v1/query",
            };
            let called_us = self.history.now_us();
            let answer = self.client.send(Method::POST, path, Some(&body)).await;
            let (outcome, error) = judged(&answer);
            let body = answer.map(|answer| answer.body).unwrap_or_default();
            let found = found(asked, &body, key).filter(|_| outcome == Outcome::Ok);
            self.record(Action::Read { key, found, level }, called_us, outcome, error);
        }
    }
}

/// The version that a reply shows. An answer and the hits it was written from must agree.
fn found(asked: Asked, body: &Value, key: Key) -> Option<Version> {
    let shown = version_in(body, key);
    match (asked, shown) {
        (Asked::Query, Some(shown)) => {
            let written = version_of(body["answer"].as_str().unwrap_or_default(), key);
            Some(if written == shown { shown } else { GARBLED })
        }
        (Asked::Search, _) | (Asked::Query, None) => shown,
    }
}

/// The words that always ask for this document.
fn words(key: Key) -> String {
    format!("What does k{key} say?")
}

/// Writes one document `rounds` times through one coordinator after the other, and reads it at once through all of them, twice: the second
/// time it can come out of a memory. Returns its key.
pub async fn run(ways: Vec<Texts>, numbers: Arc<Numbers>, rounds: u64) -> Key {
    let key = numbers.key();
    for round in 1..=rounds {
        let writer = &ways[round as usize % ways.len()];
        let written = match round % DELETE_EVERY {
            0 => writer.delete(key).await,
            _ => writer.put(key, numbers.version()).await,
        };
        let Some(token) = written else { continue };
        // New words each round, whose vector the second coordinator can only have from the first.
        let anew = format!("{} Asked for the {round}th time.", words(key));
        for reader in ways.iter().chain(&ways) {
            reader.read(key, &words(key), Level::Session, &token).await;
            reader.read(key, &words(key), Level::Eventual, "").await;
            reader.read(key, &anew, Level::Session, &token).await;
        }
    }
    key
}

/// Reads the documents once more through every coordinator.
pub async fn read_all(ways: &[Texts], keys: &[Key]) {
    for (way, key) in ways.iter().flat_map(|way| keys.iter().map(move |key| (way, *key))) {
        way.read(key, &words(key), Level::Eventual, "").await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_must_be_written_from_what_is_shown() {
        let reply = |answer: &str| json!({ "answer": answer, "hits": [{ "document_id": "k7", "text": "k7 v12" }] });
        assert_eq!(found(Asked::Query, &reply("k7 v12"), 7), Some(12));
        assert_eq!(found(Asked::Query, &reply("k7 v11"), 7), Some(GARBLED), "of an older version");
        assert_eq!(found(Asked::Search, &reply("k7 v11"), 7), Some(12));
        assert_eq!(found(Asked::Query, &json!({ "answer": "Nothing", "hits": [] }), 7), None);
    }
}
