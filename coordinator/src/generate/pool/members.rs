//! Who is in the pool: made from the configuration, added and removed while requests run, listed with what is known of each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::limits;
use cluster_config::llm_config::{LlmBackendConfig, LlmConfig, LlmKind};
use serde::Serialize;
use utoipa::ToSchema;

use super::super::GenerateOptions;
use super::super::backend::{Backend, Identity};
use super::super::metrics::PoolMetrics;
use super::super::ollama::Ollama;
use super::super::openai::OpenAi;
use super::super::stream;
use super::permit::Entry;
use super::{Policy, Pool, Timeouts};

/// One backend's place in the pool.
pub struct Member {
    /// How to ask it.
    pub backend: Arc<dyn Backend>,
    /// Share of the requests relative to the others; at least 1.
    pub weight: u32,
    /// Lower ones are asked first.
    pub priority: u32,
    /// Most requests at once; at least 1.
    pub concurrency_max: usize,
    /// Tokens of prompt and answer that its model takes.
    pub context_tokens: usize,
}

impl Member {
    /// A member of weight 1 and the usual context.
    pub fn new(backend: Arc<dyn Backend>, concurrency_max: usize) -> Self {
        Self { backend, weight: 1, priority: 0, concurrency_max, context_tokens: 4096 }
    }
}

/// Why a pool cannot be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The variable that should hold a backend's key does not.
    #[error("backend {backend}: environment variable {variable} is not set")]
    MissingKey {
        /// The backend's name.
        backend: String,
        /// As configured.
        variable: String,
    },
    /// The HTTP client cannot be made.
    #[error("cannot make an HTTP client: {0}")]
    Client(#[from] reqwest::Error),
    /// A backend of that name is there.
    #[error("backend {0:?} is there already")]
    NameTaken(String),
    /// `limits::LLM_BACKENDS_MAX` are there.
    #[error("there are {} backends, and may be no more", limits::LLM_BACKENDS_MAX)]
    TooMany,
}

/// A backend as operators see it.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct BackendStatus {
    /// Its name.
    pub name: String,
    /// Model asked for where a request names none.
    pub model: String,
    /// Share of the requests.
    pub weight: u32,
    /// Lower ones are asked first.
    pub priority: u32,
    /// Most requests at once.
    pub concurrency_max: usize,
    /// Tokens of prompt and answer that its model takes.
    pub context_tokens: usize,
    /// `up`, `resting` (it said it is busy) or `ejected` (it failed).
    pub state: &'static str,
    /// Requests of this coordinator there.
    pub in_flight: usize,
    /// Requests of others there, where it tells.
    pub foreign: usize,
    /// Seconds to the first token lately; slow ones count at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_s: Option<f64>,
    /// Factor that what it tells of its load puts on its cost, at least 1.
    pub penalty: f64,
}

impl Pool {
    /// The configured pool, which may be empty. `environment` looks keys up.
    ///
    /// Errors: `MissingKey`, `Client`.
    pub fn from_config(
        config: &LlmConfig,
        environment: impl Fn(&str) -> Option<String>,
        metrics: PoolMetrics,
    ) -> Result<Self, PoolError> {
        let client = stream::http_client(config.routing.connect_timeout)?;
        let defaults = GenerateOptions {
            max_tokens: Some(config.max_tokens),
            temperature: Some(config.temperature),
            top_k: Some(config.top_k),
            gpu_layers: config.gpu_layers,
            ..GenerateOptions::default()
        };
        let policy = Policy { defaults, ..Policy::of(&config.routing) };
        let pool = Self::with_client(Vec::new(), policy, metrics, Some(client));
        for written in &config.backends {
            pool.add_configured(written, &environment)?;
        }
        Ok(pool)
    }

    /// Adds a backend as configured. Its first request may come at once.
    ///
    /// Errors: `MissingKey`, `NameTaken`, `TooMany`, `Client`.
    pub fn add_configured(
        &self,
        written: &LlmBackendConfig,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<(), PoolError> {
        let (name, url, model) = (written.name.clone(), written.url.clone(), written.model.clone());
        let api_key = match &written.api_key_env {
            None => None,
            Some(variable) => Some(
                environment(variable)
                    .ok_or_else(|| PoolError::MissingKey { backend: name.clone(), variable: variable.clone() })?,
            ),
        };
        let client = match &self.shared.client {
            Some(client) => client.clone(),
            None => stream::http_client(self.shared.policy.timeouts.connect)?,
        };
        let backend: Arc<dyn Backend> = match written.kind {
            LlmKind::Ollama => Arc::new(Ollama::new(name, url, model, client)),
            LlmKind::Openai => Arc::new(OpenAi::new(name, url, model, api_key, client)),
            LlmKind::Vllm => Arc::new(OpenAi::vllm(name, url, model, api_key, client)),
        };
        self.add(Member {
            backend,
            weight: written.weight,
            priority: written.priority,
            concurrency_max: written.concurrency_max,
            context_tokens: written.context_tokens,
        })
    }

    /// Adds a backend. Errors: `NameTaken`, `TooMany`.
    pub fn add(&self, member: Member) -> Result<(), PoolError> {
        {
            let mut state = self.shared.state.lock();
            let name = member.backend.name();
            if state.entries.values().any(|entry| entry.member.backend.name() == name) {
                return Err(PoolError::NameTaken(name.to_owned()));
            }
            if state.entries.len() >= limits::LLM_BACKENDS_MAX {
                return Err(PoolError::TooMany);
            }
            let id = state.next_id;
            state.next_id += 1;
            state.entries.insert(id, Entry::new(Arc::new(member)));
        }
        self.shared.dispatch();
        Ok(())
    }

    /// Takes a backend out; answers it is writing go on to their end. False: there is none of that name.
    pub fn remove(&self, name: &str) -> bool {
        let is_removed = {
            let mut state = self.shared.state.lock();
            let before = state.entries.len();
            state.entries.retain(|_, entry| entry.member.backend.name() != name);
            state.entries.len() < before
        };
        if is_removed {
            self.shared.metrics.forget(name);
            // Who waits for it alone waits in vain.
            self.shared.dispatch();
        }
        is_removed
    }

    /// Whether there is nobody to ask.
    pub fn is_empty(&self) -> bool {
        self.shared.state.lock().entries.is_empty()
    }

    /// Requests that wait for a free place.
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().queue.len()
    }

    /// Who the backends are.
    pub fn identities(&self) -> Vec<Identity> {
        let identity = |entry: &Entry| Identity::of(entry.member.backend.as_ref());
        self.shared.state.lock().entries.values().map(identity).collect()
    }

    /// Tokens that a prompt may have, if `answer_tokens` (`None`: as many as usual) are to fit behind it at any backend that may be asked.
    pub fn prompt_tokens_max(&self, model: Option<&str>, answer_tokens: Option<u32>) -> usize {
        let answer = answer_tokens.or(self.shared.policy.defaults.max_tokens).unwrap_or(0) as usize;
        let state = self.shared.state.lock();
        let of_model = |entry: &&Entry| model.is_none_or(|model| entry.member.backend.model() == model);
        let narrowest = |entries: Vec<&Entry>| entries.iter().map(|entry| entry.member.context_tokens).min();
        let context = narrowest(state.entries.values().filter(of_model).collect())
            .or_else(|| narrowest(state.entries.values().collect()))
            .unwrap_or(limits::LLM_CONTEXT_TOKENS_MIN);
        context.saturating_sub(answer + TEMPLATE_TOKENS).max(context / 4)
    }

    /// What is known of each backend, in the order in which they were added.
    pub fn status(&self) -> Vec<BackendStatus> {
        let now = Instant::now();
        let state = self.shared.state.lock();
        let status = |entry: &Entry| {
            let member = &entry.member;
            let resting = entry.health.busy_for(now).is_some();
            BackendStatus {
                name: member.backend.name().to_owned(),
                model: member.backend.model().to_owned(),
                weight: member.weight,
                priority: member.priority,
                concurrency_max: member.concurrency_max,
                context_tokens: member.context_tokens,
                state: match (entry.health.is_ejected(), resting) {
                    (true, _) => "ejected",
                    (false, true) => "resting",
                    (false, false) => "up",
                },
                in_flight: entry.in_flight,
                foreign: entry.told.foreign,
                first_token_s: entry.cost.seconds(now),
                penalty: entry.told.penalty,
            }
        };
        state.entries.values().map(status).collect()
    }
}

/// Room for the chat template's own tokens.
const TEMPLATE_TOKENS: usize = 128;

impl Timeouts {
    /// As configured.
    pub(super) fn of(routing: &cluster_config::llm_config::LlmRouting) -> Self {
        Self {
            connect: routing.connect_timeout,
            queue: routing.queue_timeout,
            first_token: routing.first_token_timeout,
            token_gap: routing.token_gap_timeout,
            total: routing.total_timeout,
            probe: routing.connect_timeout.max(Duration::from_secs(2)),
            probe_interval: routing.probe_interval,
        }
    }
}
