//! A plain HTTP client of the cluster: JSON in, JSON out, nothing hidden.

use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// Talks to one coordinator.
#[derive(Clone)]
pub struct Client {
    base: String,
    http: reqwest::Client,
}

/// Status and body of an answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Body as JSON, `Null` where it is not JSON.
    pub body: Value,
}

impl Answer {
    /// The body of a success. Errors: the status and body of anything else.
    pub fn ok(self) -> anyhow::Result<Value> {
        ensure!(self.status.is_success(), "{}: {}", self.status, self.body);
        Ok(self.body)
    }
}

impl Client {
    /// A client of the process on that loopback port.
    pub fn new(port: u16) -> Self {
        Self::at("127.0.0.1", port)
    }

    /// A client of the process at that address.
    pub fn at(address: &str, port: u16) -> Self {
        Self { base: format!("http://{address}:{port}"), http: reqwest::Client::new() }
    }

    /// Sends a request with a JSON body, if any.
    pub async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).timeout(Duration::from_secs(60));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status();
        let body = serde_json::from_slice(&response.bytes().await?).unwrap_or(Value::Null);
        Ok(Answer { status, body })
    }

    /// Sends bytes as they are, as `application/json`.
    pub async fn send_raw(&self, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<Answer> {
        let request = self.http.request(method, format!("{}{path}", self.base));
        let response = request.header("content-type", "application/json").body(body).send().await?;
        let status = response.status();
        let body = serde_json::from_slice(&response.bytes().await?).unwrap_or(Value::Null);
        Ok(Answer { status, body })
    }

    /// Sends a file as a form, with further fields. Errors: no answer.
    pub async fn upload(&self, fields: &[(&str, &str)], file_name: &str, bytes: Vec<u8>) -> anyhow::Result<Answer> {
        let part = reqwest::multipart::Part::bytes(bytes).file_name(file_name.to_owned());
        let mut form = reqwest::multipart::Form::new();
        for (name, value) in fields {
            form = form.text((*name).to_owned(), (*value).to_owned());
        }
        let request = self.http.post(format!("{}/api/v1/documents", self.base)).timeout(Duration::from_secs(60));
        let response = request.multipart(form.part("file", part)).send().await?;
        let status = response.status();
        let body = serde_json::from_slice(&response.bytes().await?).unwrap_or(Value::Null);
        Ok(Answer { status, body })
    }

    /// A body as text, for `/metrics` and the like.
    pub async fn text(&self, path: &str) -> anyhow::Result<String> {
        Ok(self.http.get(format!("{}{path}", self.base)).send().await?.error_for_status()?.text().await?)
    }

    /// Whether `/readyz` says yes. Errors: the reason it gives.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let response = self.http.get(format!("{}/readyz", self.base)).timeout(Duration::from_secs(5)).send().await?;
        let status = response.status();
        let text = response.text().await?;
        ensure!(status.is_success(), "{status}: {text}");
        Ok(())
    }

    /// Creates a collection.
    pub async fn create_collection(&self, name: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(Method::PUT, &format!("/api/v1/collections/{name}"), Some(body)).await?.ok()
    }

    /// Puts points; each is `(id, vector)`.
    pub async fn put_points(&self, collection: &str, points: &[(String, Vec<f32>)]) -> anyhow::Result<Answer> {
        let points: Vec<Value> = points.iter().map(|(id, vector)| json!({ "id": id, "vector": vector })).collect();
        let path = format!("/api/v1/collections/{collection}/points");
        self.send(Method::PUT, &path, Some(&json!({ "points": points }))).await
    }

    /// Searches by vector; `knobs` are merged into the body.
    pub async fn search(&self, collection: &str, vector: &[f32], knobs: Value) -> anyhow::Result<Answer> {
        let mut body = json!({ "collection": collection, "vector": vector });
        if let (Some(body), Some(knobs)) = (body.as_object_mut(), knobs.as_object()) {
            body.extend(knobs.clone());
        }
        self.send(Method::POST, "/api/v1/search", Some(&body)).await
    }

    /// The cluster as `/api/v1/cluster` tells it.
    pub async fn cluster(&self) -> anyhow::Result<Value> {
        self.send(Method::GET, "/api/v1/cluster", None).await?.ok()
    }

    /// Digests of one shard's copies.
    pub async fn digest(&self, collection: &str, shard: u32) -> anyhow::Result<Value> {
        let path = format!("/api/v1/shards/{collection}/{shard}:digest");
        self.send(Method::POST, &path, None).await?.ok().with_context(|| format!("digest of {collection}/{shard}"))
    }
}
