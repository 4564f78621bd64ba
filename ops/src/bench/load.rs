//! Sends prepared requests over a fixed number of kept-alive connections, as fast as they are answered.
//!
//! `hyper` directly, one connection per task: on the machine that also runs the cluster a client's own work is part of what is
//! measured, and a pool, redirects or URL parsing per request would be a tenth of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::Error;
use crate::eval::metrics::percentile;

/// What to send.
#[derive(Clone, Debug)]
pub struct Load {
    /// `host:port`.
    pub address: String,
    /// Path of the request.
    pub path: &'static str,
    /// JSON bodies, sent in turn.
    pub bodies: Arc<Vec<Bytes>>,
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// Requests in all.
    pub requests: usize,
    /// Give the answers back, those to the first round of bodies.
    pub keep_answers: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Of every request, unordered.
    pub latencies: Vec<Duration>,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// By number of the body; empty unless asked for.
    pub answers: Vec<Bytes>,
    /// The time each of `answers` took.
    pub answer_times: Vec<Duration>,
}

impl Outcome {
    /// Requests answered per second.
    pub fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// The nearest-rank percentile of the latencies, milliseconds.
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        percentile(&self.latencies, percent).as_secs_f64() * 1000.0
    }
}

impl Load {
    /// Sends everything, from a thread of its own as wrk does: tasks of a client that wake each other across threads would be part of
    /// what is measured. Errors: the first request that was not answered with 200 ends the run.
    ///
    /// Cancel: dropping it ends the thread.
    pub async fn run(&self) -> Result<Outcome, Error> {
        let failed = |error: std::io::Error| Error::local(format!("the client's thread: {error}"), "");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (mut reply, answer) = oneshot::channel();
        let load = self.clone();
        let send = move || {
            let outcome = runtime.block_on(async {
                tokio::select! {
                    outcome = load.send_all() => Some(outcome),
                    () = reply.closed() => None,
                }
            });
            // Nobody waits any more where this fails.
            let _ = outcome.map(|outcome| reply.send(outcome));
        };
        std::thread::Builder::new().name("load".to_owned()).spawn(send).map_err(failed)?;
        answer.await.map_err(|_| Error::local("the client's thread ended early", ""))?
    }

    async fn send_all(&self) -> Result<Outcome, Error> {
        let mut connections = Vec::new();
        for _ in 0..self.connections {
            connections.push(connect(&self.address).await?);
        }
        let next = Arc::new(AtomicUsize::new(0));
        let begun = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for connection in connections {
            tasks.spawn(self.clone().drive(connection, Arc::clone(&next)));
        }
        let mut answered = Vec::with_capacity(self.requests);
        while let Some(done) = tasks.join_next().await {
            answered.extend(done.map_err(|error| Error::local(format!("a connection's task: {error}"), ""))??);
        }
        let elapsed = begun.elapsed();
        let mut outcome = Outcome { elapsed, ..Outcome::default() };
        outcome.latencies = answered.iter().map(|answer| answer.took).collect();
        answered.retain(|answer| answer.body.is_some());
        answered.sort_unstable_by_key(|answer| answer.number);
        outcome.answer_times = answered.iter().map(|answer| answer.took).collect();
        outcome.answers = answered.into_iter().filter_map(|answer| answer.body).collect();
        Ok(outcome)
    }

    async fn drive(
        self,
        mut connection: SendRequest<Full<Bytes>>,
        next: Arc<AtomicUsize>,
    ) -> Result<Vec<Answered>, Error> {
        let mut answered = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.requests {
                return Ok(answered);
            }
            let body = self.bodies[number % self.bodies.len()].clone();
            let begun = Instant::now();
            let answer = post(&mut connection, &self.address, self.path, body).await?;
            let took = begun.elapsed();
            let is_kept = self.keep_answers && number < self.bodies.len();
            answered.push(Answered { number, took, body: is_kept.then_some(answer) });
        }
    }
}

struct Answered {
    number: usize,
    took: Duration,
    body: Option<Bytes>,
}

async fn connect(address: &str) -> Result<SendRequest<Full<Bytes>>, Error> {
    let unreachable =
        |detail: String| Error::Unreachable { url: format!("http://{address}"), detail: detail.to_lowercase() };
    let stream = TcpStream::connect(address).await.map_err(|error| unreachable(error.to_string()))?;
    stream.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|error| unreachable(error.to_string()))?;
    // Ends with the sender; its error reaches the request under way.
    tokio::spawn(connection);
    Ok(sender)
}

async fn post(
    connection: &mut SendRequest<Full<Bytes>>,
    address: &str,
    path: &str,
    body: Bytes,
) -> Result<Bytes, Error> {
    let broken =
        |error: hyper::Error| Error::Unreachable { url: format!("http://{address}"), detail: error.to_string() };
    let request = Request::post(path)
        .header("host", address)
        .header("content-type", "application/json")
        .body(Full::new(body))
        .map_err(|error| Error::local(format!("cannot build the request: {error}"), ""))?;
    connection.ready().await.map_err(broken)?;
    let response = connection.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let answer = response.into_body().collect().await.map_err(broken)?.to_bytes();
    if status.is_success() {
        return Ok(answer);
    }
    Err(Error::CheckFailed(format!("{path} answered {status}: {}", String::from_utf8_lossy(&answer))))
}

/// `host:port` of a coordinator's URL. Errors: not a plain HTTP address.
pub fn address_of(url: &str) -> Result<String, Error> {
    let parsed = reqwest::Url::parse(url).ok().filter(|url| url.scheme() == "http");
    let address = parsed.and_then(|url| Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?)));
    address.ok_or_else(|| Error::usage(format!("{url} is not a plain HTTP address"), "measure without TLS in between"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_plain_http() {
        assert_eq!(address_of("http://127.0.0.1:8000").expect("an address"), "127.0.0.1:8000");
        assert_eq!(address_of("http://host/").expect("an address"), "host:80");
        assert!(address_of("https://host").is_err() && address_of("host:80").is_err());
    }
}
