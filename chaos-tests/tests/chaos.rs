//! Faults by plan under load, one minute of them (`CHAOS_SECONDS`), or five.

use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::chaos::{Run, run};

fn number(variable: &str) -> anyhow::Result<Option<u64>> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty());
    text.map(|text| text.parse().with_context(|| format!("{variable}={text:?} is not a number"))).transpose()
}

async fn chaos(seconds: u64) -> anyhow::Result<()> {
    let seed = number("SEED")?.unwrap_or_else(rand::random);
    let verdict = run(&Run::of_seed(seed, Duration::from_secs(seconds))).await?;
    println!("{verdict}");
    ensure!(verdict.is_good(), "{verdict}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_minute() -> anyhow::Result<()> {
    chaos(number("CHAOS_SECONDS")?.unwrap_or(60)).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "five minutes of faults; ops/test --full"]
async fn five_minutes() -> anyhow::Result<()> {
    chaos(300).await
}
