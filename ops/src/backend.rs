//! `susui backend`: the language models that one coordinator asks.

use clap::{Args, Subcommand};
use cluster_config::llm_config::{LlmKind, WrittenLlmBackend};
use reqwest::Method;
use serde::{Deserialize, Serialize};

use crate::cli::Global;
use crate::client::Client;
use crate::error::Error;
use crate::output::{row, table};

/// The verbs of `susui backend`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the language model backends of the coordinator at --url, and what is known of each
    ///
    /// Examples:
    ///   susui backend list
    ///   susui backend list --json | jq '.backends[] | select(.state != "up")'
    #[command(verbatim_doc_comment)]
    List,
    /// Add a backend to the coordinator at --url, until that ends
    ///
    /// What shall stay belongs into the configuration of every coordinator, under [[llm.backends]].
    ///
    /// Examples:
    ///   susui backend add local --kind ollama --at http://127.0.0.1:11434 --model llama3.2:3b
    ///   susui backend add gpu-1 --kind vllm --at http://gpu-1:8000/v1 --model llama3:70b --concurrency-max 64
    #[command(verbatim_doc_comment)]
    Add(AddArguments),
    /// Take a backend out of the coordinator at --url, until that ends; answers it is writing go on
    ///
    /// Example:
    ///   susui backend remove gpu-1
    #[command(verbatim_doc_comment)]
    Remove {
        /// Its name.
        name: String,
    },
}

/// Arguments of `susui backend add`.
#[derive(Debug, Args)]
pub struct AddArguments {
    /// Unique name, used in metrics.
    pub name: String,
    /// Protocol: ollama, openai (anything with /v1/chat/completions), or vllm (the same, and its /metrics).
    #[arg(long, value_parser = read_kind)]
    pub kind: LlmKind,
    /// Base URL; openai and vllm with the /v1.
    #[arg(long = "at", value_name = "URL")]
    pub address: String,
    /// Model asked for where a request names none.
    #[arg(long)]
    pub model: String,
    /// Environment variable of the coordinator that holds the key.
    #[arg(long)]
    pub api_key_env: Option<String>,
    /// Share of the requests relative to other backends.
    #[arg(long)]
    pub weight: Option<u32>,
    /// Lower ones are asked first; the next while all of those are full or down.
    #[arg(long)]
    pub priority: Option<u32>,
    /// Most requests at once.
    #[arg(long)]
    pub concurrency_max: Option<usize>,
    /// Tokens of prompt and answer that its model takes.
    #[arg(long)]
    pub context_tokens: Option<usize>,
}

fn read_kind(word: &str) -> Result<LlmKind, String> {
    match word {
        "ollama" => Ok(LlmKind::Ollama),
        "openai" => Ok(LlmKind::Openai),
        "vllm" => Ok(LlmKind::Vllm),
        _ => Err("use ollama, openai or vllm".to_owned()),
    }
}

/// Answer of `/api/v1/backends`.
#[derive(Debug, Deserialize, Serialize)]
struct Backends {
    backends: Vec<Backend>,
    waiting: usize,
}

#[derive(Debug, Deserialize, Serialize)]
struct Backend {
    name: String,
    model: String,
    weight: u32,
    priority: u32,
    concurrency_max: usize,
    context_tokens: usize,
    state: String,
    in_flight: usize,
    foreign: usize,
    first_token_s: Option<f64>,
    penalty: f64,
}

const PATH: [&str; 3] = ["api", "v1", "backends"];

/// Runs one verb.
pub async fn run(global: &Global, command: Command) -> Result<(), Error> {
    let (client, output) = (global.client()?, global.output());
    let backends = match command {
        Command::List => client.get(&PATH).await?,
        Command::Add(arguments) => add(&client, arguments).await?,
        Command::Remove { name } => client.delete(&[PATH[0], PATH[1], PATH[2], &name]).await?,
    };
    output.result(&backends, || text(&backends));
    Ok(())
}

async fn add(client: &Client, arguments: AddArguments) -> Result<Backends, Error> {
    let body = WrittenLlmBackend {
        name: arguments.name,
        kind: arguments.kind,
        url: arguments.address,
        model: arguments.model,
        api_key_env: arguments.api_key_env,
        weight: arguments.weight,
        priority: arguments.priority,
        concurrency_max: arguments.concurrency_max,
        context_tokens: arguments.context_tokens,
    };
    client.send(Method::POST, &PATH, &body).await
}

fn text(reply: &Backends) -> String {
    if reply.backends.is_empty() {
        return "no language model backends: answers are extractive".to_owned();
    }
    let mut rows = vec![row(["NAME", "MODEL", "STATE", "PRIORITY", "WEIGHT", "REQUESTS", "OTHERS", "FIRST TOKEN"])];
    for backend in &reply.backends {
        rows.push(vec![
            backend.name.clone(),
            backend.model.clone(),
            backend.state.clone(),
            backend.priority.to_string(),
            backend.weight.to_string(),
            format!("{}/{}", backend.in_flight, backend.concurrency_max),
            backend.foreign.to_string(),
            backend.first_token_s.map_or_else(|| "-".into(), |seconds| format!("{:.0} ms", seconds * 1e3)),
        ]);
    }
    format!("{}\n{} requests wait for a free place", table(&rows).trim_end(), reply.waiting)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn backends_are_listed_with_what_is_known() {
        let reply: Backends = serde_json::from_value(json!({"waiting": 2, "backends": [
            {"name": "gpu-1", "model": "m", "weight": 2, "priority": 0, "concurrency_max": 4, "context_tokens": 4096,
             "state": "up", "in_flight": 3, "foreign": 1, "first_token_s": 0.25, "penalty": 1.0},
            {"name": "gpu-2", "model": "m", "weight": 1, "priority": 1, "concurrency_max": 4, "context_tokens": 4096,
             "state": "ejected", "in_flight": 0, "foreign": 0, "penalty": 1.0},
        ]}))
        .expect("the API's shape");
        let text = text(&reply);
        let words = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).expect("listed");
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(words("gpu-1"), ["gpu-1", "m", "up", "0", "2", "3/4", "1", "250", "ms"]);
        assert_eq!(words("gpu-2").last().map(String::as_str), Some("-"));
        assert!(text.ends_with("2 requests wait for a free place"), "{text}");
    }
}
