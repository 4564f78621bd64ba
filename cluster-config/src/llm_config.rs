//! `[llm]` of a coordinator: which language models there are, how requests are spread over them, how long each step may take.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config_text as text;
use crate::coordinator_config::{read_bool, read_number};
use crate::error::ConfigError;
use crate::limits;
use crate::units::WrittenDuration;

/// Generation of answers. Without backends answers are extractive.
#[derive(Clone, Debug, PartialEq)]
pub struct LlmConfig {
    /// Where answers are generated; may be empty. More may be added while the coordinator runs.
    pub backends: Vec<LlmBackendConfig>,
    /// Most tokens of an answer, where the request names none.
    pub max_tokens: u32,
    /// Sampling temperature, where the request names none.
    pub temperature: f32,
    /// Sampling top-k, where the backend knows it.
    pub top_k: u32,
    /// Layers on the GPU, where the backend knows it; `None` leaves it to the backend.
    pub gpu_layers: Option<i32>,
    /// How requests are spread over the backends, how often and how long they are tried.
    pub routing: LlmRouting,
}

/// How requests reach the backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LlmRouting {
    /// Who gets the next request.
    pub balance: Balance,
    /// Serves requests that name no model while all other backends are full or down.
    pub fast_model: Option<String>,
    /// Models that stand in, in order, while all backends of a model are down.
    pub fallback_models: BTreeMap<String, Vec<String>>,
    /// Further attempts per hundred requests, before the first token.
    pub retry_percent: u32,
    /// Second copies per hundred requests, sent when the first token is later than usual. 0: none.
    pub hedge_percent: u32,
    /// TCP and TLS.
    pub connect_timeout: Duration,
    /// Waiting for a backend with a free place.
    pub queue_timeout: Duration,
    /// From being sent to the first token: loading a model can take most of it.
    pub first_token_timeout: Duration,
    /// Between two tokens.
    pub token_gap_timeout: Duration,
    /// The whole answer.
    pub total_timeout: Duration,
    /// Between two questions whether a backend is well.
    pub probe_interval: Duration,
}

impl Default for LlmRouting {
    fn default() -> Self {
        Self {
            balance: Balance::default(),
            fast_model: None,
            fallback_models: BTreeMap::new(),
            retry_percent: 20,
            hedge_percent: 5,
            connect_timeout: Duration::from_secs(2),
            queue_timeout: Duration::from_secs(10),
            first_token_timeout: Duration::from_secs(30),
            token_gap_timeout: Duration::from_secs(15),
            total_timeout: Duration::from_millis(limits::TIMEOUT_MS_MAX),
            probe_interval: Duration::from_secs(2),
        }
    }
}

/// How requests are spread. The first two names that nginx has are used as it uses them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// To the one with the fewest running requests for its weight; in turn among equals.
    #[default]
    LeastConn,
    /// Requests of one client (its session, else its address) to one backend, unless that has more than its share.
    IpHash,
    /// Of two by chance the one with the smaller (requests there) x (time to first token, slow ones counting at once).
    P2c,
    /// Requests with the same beginning (the retrieved set) to one backend, whose prompt cache knows it, unless that has more than
    /// its share.
    PrefixHash,
}

/// The protocol an LLM backend speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LlmKind {
    /// Ollama's NDJSON.
    Ollama,
    /// OpenAI's chat completions with server-sent events.
    Openai,
    /// The same, with vLLM's load at `/metrics`.
    Vllm,
}

/// One LLM backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LlmBackendConfig {
    /// Unique name, used in metrics.
    pub name: String,
    /// Protocol.
    pub kind: LlmKind,
    /// Base URL without a trailing slash.
    pub url: String,
    /// Model asked for.
    pub model: String,
    /// Environment variable that holds the key; the key itself never stands in a file.
    pub api_key_env: Option<String>,
    /// Share of the requests relative to other backends.
    pub weight: u32,
    /// Lower ones are asked first; the next when all of those are full or down.
    pub priority: u32,
    /// Most requests at once.
    pub concurrency_max: usize,
    /// Tokens of prompt and answer that its model takes.
    pub context_tokens: usize,
}

/// `[llm]` as written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "as LlmConfig and LlmRouting")]
pub struct WrittenLlm {
    pub max_tokens: Option<u32>,
    pub temperature: Option<f32>,
    pub top_k: Option<u32>,
    pub gpu_layers: Option<i32>,
    pub balance: Option<Balance>,
    pub fast_model: Option<String>,
    pub retry_percent: Option<u32>,
    pub hedge_percent: Option<u32>,
    pub connect_timeout: Option<WrittenDuration>,
    pub queue_timeout: Option<WrittenDuration>,
    pub first_token_timeout: Option<WrittenDuration>,
    pub token_gap_timeout: Option<WrittenDuration>,
    pub total_timeout: Option<WrittenDuration>,
    pub probe_interval: Option<WrittenDuration>,
    pub fallback_models: BTreeMap<String, Vec<String>>,
    pub backends: Vec<WrittenLlmBackend>,
}

/// `[[llm.backends]]` as written, and the body that adds one to a running coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as LlmBackendConfig")]
pub struct WrittenLlmBackend {
    pub name: String,
    pub kind: LlmKind,
    pub url: String,
    pub model: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency_max: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<usize>,
}

impl WrittenLlm {
    /// Takes the predecessor's variables that belong here; others are none of ours.
    pub(crate) fn apply_variable(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        match name {
            "OLLAMA_MAX_TOKENS" => self.max_tokens = Some(read_number(name, value)?),
            "OLLAMA_TEMPERATURE" => self.temperature = Some(read_number(name, value)?),
            "OLLAMA_TOP_K" => self.top_k = Some(read_number(name, value)?),
            "OLLAMA_GPU" => self.gpu_layers = read_gpu(name, value)?,
            _ => {}
        }
        Ok(())
    }

    pub(crate) fn validate(self) -> Result<LlmConfig, ConfigError> {
        if self.backends.len() > limits::LLM_BACKENDS_MAX {
            return Err(ConfigError::new(
                "llm.backends",
                format!("{} backends", self.backends.len()),
                format!("use at most {}", limits::LLM_BACKENDS_MAX),
            ));
        }
        let routing = self.routing()?;
        let mut names = BTreeSet::new();
        let mut backends: Vec<LlmBackendConfig> = Vec::with_capacity(self.backends.len());
        for (position, written) in self.backends.into_iter().enumerate() {
            let key = format!("llm.backends[{position}].");
            let backend = written.validate(&key)?;
            if !names.insert(backend.name.clone()) {
                return Err(ConfigError::new(
                    format!("{key}name"),
                    format!("{:?} is the name of another backend too", backend.name),
                    "give each backend its own name",
                ));
            }
            backends.push(backend);
        }
        Ok(LlmConfig {
            backends,
            max_tokens: text::in_range("llm.max_tokens", self.max_tokens.unwrap_or(256), 1, limits::LLM_TOKENS_MAX)?,
            temperature: text::in_range("llm.temperature", self.temperature.unwrap_or(0.1), 0.0, 2.0)?,
            top_k: text::in_range("llm.top_k", self.top_k.unwrap_or(20), 1, limits::TOP_K_MAX)?,
            gpu_layers: self.gpu_layers,
            routing,
        })
    }

    fn routing(&self) -> Result<LlmRouting, ConfigError> {
        let defaults = LlmRouting::default();
        let duration = |name: &str, written: Option<WrittenDuration>, default: Duration, max: Duration| {
            let written = written.unwrap_or(WrittenDuration(default));
            text::duration_in(&format!("llm.{name}"), written, limits::INTERVAL_MIN, max)
        };
        let percent = |name: &str, written: Option<u32>, default| {
            text::in_range(&format!("llm.{name}"), written.unwrap_or(default), 0, 100)
        };
        for (model, stand_ins) in &self.fallback_models {
            if stand_ins.is_empty() || stand_ins.len() > limits::LLM_FALLBACKS_MAX {
                return Err(ConfigError::new(
                    format!("llm.fallback_models.{model}"),
                    format!("{} models", stand_ins.len()),
                    format!("list 1 to {}", limits::LLM_FALLBACKS_MAX),
                ));
            }
        }
        let total_max = Duration::from_millis(limits::TIMEOUT_MS_MAX);
        let max = limits::INTERVAL_MAX;
        Ok(LlmRouting {
            balance: self.balance.unwrap_or_default(),
            fast_model: self.fast_model.clone().filter(|model| !model.trim().is_empty()),
            fallback_models: self.fallback_models.clone(),
            retry_percent: percent("retry_percent", self.retry_percent, defaults.retry_percent)?,
            hedge_percent: percent("hedge_percent", self.hedge_percent, defaults.hedge_percent)?,
            connect_timeout: duration("connect_timeout", self.connect_timeout, defaults.connect_timeout, max)?,
            queue_timeout: duration("queue_timeout", self.queue_timeout, defaults.queue_timeout, max)?,
            first_token_timeout: duration(
                "first_token_timeout",
                self.first_token_timeout,
                defaults.first_token_timeout,
                max,
            )?,
            token_gap_timeout: duration("token_gap_timeout", self.token_gap_timeout, defaults.token_gap_timeout, max)?,
            total_timeout: duration("total_timeout", self.total_timeout, defaults.total_timeout, total_max)?,
            probe_interval: duration("probe_interval", self.probe_interval, defaults.probe_interval, max)?,
        })
    }
}

impl WrittenLlmBackend {
    /// Fills in the defaults and checks every key; `prefix` is put before the names of faulty ones.
    pub fn validate(self, prefix: &str) -> Result<LlmBackendConfig, ConfigError> {
        let key = |name: &str| format!("{prefix}{name}");
        text::check_word(&key("name"), &self.name)?;
        let url = self.url.trim_end_matches('/');
        let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        if host.is_none_or(|host| host.is_empty() || host.contains(char::is_whitespace)) {
            return Err(ConfigError::new(
                key("url"),
                format!("{:?} is not an HTTP address", self.url),
                "use http://HOST:PORT or https://HOST",
            ));
        }
        if self.model.trim().is_empty() {
            return Err(ConfigError::new(key("model"), "empty", "name a model the backend serves"));
        }
        if let Some(variable) = &self.api_key_env {
            let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if variable.is_empty() || !variable.chars().all(allowed) {
                return Err(ConfigError::new(
                    key("api_key_env"),
                    "not the name of an environment variable",
                    "name the variable that holds the key; do not write the key itself",
                ));
            }
        }
        let (weight, priority) = (self.weight.unwrap_or(1), self.priority.unwrap_or(0));
        let (concurrency_max, context_tokens) =
            (self.concurrency_max.unwrap_or(4), self.context_tokens.unwrap_or(4096));
        Ok(LlmBackendConfig {
            url: url.to_owned(),
            name: self.name,
            kind: self.kind,
            model: self.model,
            api_key_env: self.api_key_env,
            weight: text::in_range(&key("weight"), weight, 1, limits::NODE_WEIGHT_MAX)?,
            priority: text::in_range(&key("priority"), priority, 0, limits::LLM_PRIORITY_MAX)?,
            concurrency_max: text::in_range(&key("concurrency_max"), concurrency_max, 1, limits::LLM_CONCURRENCY_MAX)?,
            context_tokens: text::in_range(
                &key("context_tokens"),
                context_tokens,
                limits::LLM_CONTEXT_TOKENS_MIN,
                limits::LLM_CONTEXT_TOKENS_MAX,
            )?,
        })
    }
}

/// A number of layers, or whether at all: on leaves the number to the backend. 1 means on, as it does for switches; nobody wants one layer.
fn read_gpu(name: &str, value: &str) -> Result<Option<i32>, ConfigError> {
    if let Ok(layers) = value.parse::<i32>()
        && layers != 1
    {
        return Ok(Some(layers));
    }
    match read_bool(name, value) {
        Ok(true) => Ok(None),
        Ok(false) => Ok(Some(0)),
        Err(_) => {
            let problem = format!("{value:?} is neither a switch nor a number of layers");
            Err(ConfigError::new(name, problem, "use true, false, or a number of layers (-1: all that fit)"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gpu_variable_is_a_switch_or_a_number() {
        for (value, expected) in
            [("true", None), ("1", None), ("false", Some(0)), ("0", Some(0)), ("-1", Some(-1)), ("33", Some(33))]
        {
            assert_eq!(read_gpu("OLLAMA_GPU", value).expect("valid"), expected, "{value}");
        }
        assert!(read_gpu("OLLAMA_GPU", "some").is_err());
    }

    #[test]
    fn faults_are_named() {
        let fault = |toml: &str| {
            let written: WrittenLlm = toml::from_str(toml).expect("well-formed");
            written.validate().expect_err("is refused").key
        };
        assert_eq!(fault("hedge_percent = 101"), "llm.hedge_percent");
        assert_eq!(fault("queue_timeout = \"1h\""), "llm.queue_timeout");
        assert_eq!(fault("[fallback_models]\nbig = []"), "llm.fallback_models.big");
        let backend = "[[backends]]\nname = \"a\"\nkind = \"vllm\"\nurl = \"http://h\"\nmodel = \"m\"\n";
        assert_eq!(fault(&format!("{backend}priority = 1000")), "llm.backends[0].priority");
        assert_eq!(fault(&format!("{backend}{backend}")), "llm.backends[1].name");
    }
}
