//! The scripted language model as a process, for load tests: `scripted-llm --port 11500 --first-token-ms 150 --token-gap-ms 10`.

use std::time::Duration;

use chaos_tests::llm::{Script, ScriptedLlm};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// Answers like Ollama, OpenAI and vLLM on one port, in times that are given, until SIGTERM
///
/// Every answer takes first-token-ms + (tokens - 1) x token-gap-ms.
#[derive(Debug, Parser)]
#[command(verbatim_doc_comment)]
struct Arguments {
    /// Port of loopback.
    #[arg(long)]
    port: u16,
    /// From the request to the first token.
    #[arg(long, default_value_t = 150)]
    first_token_ms: u64,
    /// From one token to the next.
    #[arg(long, default_value_t = 10)]
    token_gap_ms: u64,
    /// Tokens of every answer.
    #[arg(long, default_value_t = 64)]
    tokens: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { port, first_token_ms, token_gap_ms, tokens } = Arguments::parse();
    let script = Script {
        tokens: (1..=tokens).map(|number| format!("word{number} ")).collect(),
        first_token: Duration::from_millis(first_token_ms),
        token_gap: Duration::from_millis(token_gap_ms),
        ..Script::default()
    };
    let _server = ScriptedLlm::start_at(port, script).await?;
    signal(SignalKind::terminate())?.recv().await;
    Ok(())
}
