//! A language model server that does what a test tells it: Ollama's, OpenAI's and vLLM's protocols on one port, with times, limits and failures by
//! script. It notes when each request came, when each token left, and when the client went away.
//!
//! It speaks HTTP by hand over a socket: a library would hide the moment of a disconnect and smooth over what is to be broken.

mod bodies;
mod connection;
mod script;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

pub use script::{Ending, Script, Steps};

/// Longest wait for something that a test expects to happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// What happened to one generation.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// `/api/chat`, `/v1/chat/completions` or `/api/generate`.
    pub path: String,
    /// The request's body.
    pub body: Value,
    /// When the request was there as a whole.
    pub received: Instant,
    /// When each token was handed to the kernel.
    pub sent: Vec<Instant>,
    /// How it ended, and when.
    pub end: Option<(Instant, End)>,
}

/// How a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With its last token.
    Complete,
    /// The client closed its connection first.
    ClientGone,
    /// As [`Ending`] says.
    Broken,
    /// Refused: too many at once.
    Refused,
}

/// What all connections share.
struct Shared {
    script: watch::Sender<Script>,
    exchanges: watch::Sender<Vec<Exchange>>,
}

impl Shared {
    /// Notes a new request; its number, and how many are running with it.
    fn begin(&self, path: &str, body: Value) -> (usize, usize) {
        let mut numbers = (0, 0);
        self.exchanges.send_modify(|exchanges| {
            let (sent, received) = (Vec::new(), Instant::now());
            exchanges.push(Exchange { path: path.to_owned(), body, received, sent, end: None });
            let running = exchanges.iter().filter(|exchange| exchange.end.is_none()).count();
            numbers = (exchanges.len() - 1, running);
        });
        numbers
    }

    fn note_token(&self, number: usize) {
        let now = Instant::now();
        self.exchanges.send_modify(|exchanges| exchanges[number].sent.push(now));
    }

    fn end(&self, number: usize, end: End) {
        let now = Instant::now();
        self.exchanges.send_modify(|exchanges| exchanges[number].end = Some((now, end)));
    }
}

/// The server. Dropping it closes its port and all connections.
pub struct ScriptedLlm {
    port: u16,
    shared: Arc<Shared>,
    serving: Option<(CancellationToken, JoinHandle<()>)>,
}

impl ScriptedLlm {
    /// Starts on a free port.
    pub async fn start(script: Script) -> anyhow::Result<Self> {
        Self::start_at(0, script).await
    }

    /// Starts on that port of loopback. Errors: somebody has it.
    pub async fn start_at(port: u16, script: Script) -> anyhow::Result<Self> {
        let (script, exchanges) = (watch::Sender::new(script), watch::Sender::new(Vec::new()));
        let mut server = Self { port, shared: Arc::new(Shared { script, exchanges }), serving: None };
        server.listen().await?;
        Ok(server)
    }

    async fn listen(&mut self) -> anyhow::Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).await?;
        self.port = listener.local_addr()?.port();
        let shared = Arc::clone(&self.shared);
        let cancel = CancellationToken::new();
        let cancelled = cancel.clone();
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    () = cancelled.cancelled() => break,
                    accepted = listener.accept() => {
                        if let Ok((stream, _)) = accepted {
                            connections.spawn(connection::serve(stream, Arc::clone(&shared)));
                        }
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
            drop(listener);
            connections.shutdown().await;
        });
        self.serving = Some((cancel, serving));
        Ok(())
    }

    /// Closes the port and every connection, as a process that ends does. Both are closed when it returns.
    pub async fn stop(&mut self) {
        if let Some((cancel, serving)) = self.serving.take() {
            cancel.cancel();
            // It ends in no other way than by this.
            let _ = serving.await;
        }
    }

    /// Listens again on the same port. Errors: somebody took it.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await;
        self.listen().await
    }

    /// Base URL for Ollama's protocol; OpenAI's is below `/v1`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What generations that begin from now on do.
    pub fn play(&self, script: Script) {
        self.shared.script.send_replace(script);
    }

    /// All generations so far, in the order in which they came.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.shared.exchanges.borrow().clone()
    }

    /// Waits until `condition` holds for the generations so far. Errors: it does not in [`PATIENCE`].
    pub async fn until(&self, condition: impl Fn(&[Exchange]) -> bool) -> anyhow::Result<Vec<Exchange>> {
        let mut seen = self.shared.exchanges.subscribe();
        let waited = tokio::time::timeout(PATIENCE, seen.wait_for(|exchanges| condition(exchanges)));
        let is_met = matches!(waited.await, Ok(Ok(_)));
        ensure!(is_met, "it never came to that: {:#?}", self.exchanges());
        Ok(self.exchanges())
    }
}

impl Drop for ScriptedLlm {
    fn drop(&mut self) {
        if let Some((cancel, _)) = self.serving.take() {
            cancel.cancel();
        }
    }
}

#[cfg(test)]
mod tests;
