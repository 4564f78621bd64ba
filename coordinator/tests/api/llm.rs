//! Coordinators with scripted language model servers behind them.

use chaos_tests::llm::ScriptedLlm;
use cluster_config::llm_config::{Balance, LlmBackendConfig, LlmConfig, LlmKind, LlmRouting};
use coordinator::generate::metrics::PoolMetrics;
use coordinator::generate::pool::Pool;
use serde_json::Value;

use super::support::{Coordinator, Setup};

/// What the collection `t` of [`with_text`] holds.
pub(crate) const TEXT: &str = "Lift is made by the wing. Drag is the price of it. The engine pays the price in fuel.";

pub(crate) fn backend_of(name: &str, server: &ScriptedLlm, kind: LlmKind) -> LlmBackendConfig {
    let path = if kind == LlmKind::Ollama { "" } else { "/v1" };
    LlmBackendConfig {
        name: name.to_owned(),
        kind,
        url: format!("{}{path}", server.url()),
        model: "small".into(),
        api_key_env: None,
        weight: 1,
        priority: 0,
        concurrency_max: 128,
        context_tokens: 4096,
    }
}

/// A pool of servers `backend-0`, `backend-1` and so on, all with the model `small`.
pub(crate) fn pool_with(routing: LlmRouting, servers: &[(&ScriptedLlm, LlmKind)]) -> Pool {
    let named = |(number, (server, kind)): (usize, &(&ScriptedLlm, LlmKind))| {
        backend_of(&format!("backend-{number}"), server, *kind)
    };
    let backends = servers.iter().enumerate().map(named).collect();
    let config = LlmConfig { backends, max_tokens: 256, temperature: 0.1, top_k: 20, gpu_layers: None, routing };
    Pool::from_config(&config, |_| None, PoolMetrics::new()).expect("valid")
}

pub(crate) fn pool_of(servers: &[(&ScriptedLlm, LlmKind)]) -> Pool {
    pool_with(LlmRouting::default(), servers)
}

pub(crate) fn balanced(balance: Balance) -> LlmRouting {
    LlmRouting { balance, ..LlmRouting::default() }
}

/// A coordinator with one document, `aero`, in the collection `t`.
pub(crate) async fn with_text(pool: Pool) -> Coordinator {
    let c = Coordinator::start(Setup { llm: Some(pool), caching: false, ..Setup::default() }).await;
    c.create_texts("t").await;
    assert_eq!(c.upload("t", "aero", "Aerodynamics", TEXT).await["status"], "done");
    c
}

/// The data of server-sent events.
pub(crate) fn data_of(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
}

/// Newline-delimited JSON.
pub(crate) fn records_of(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}
