//! A bug planted in the nodes is found from outside, by the checkers alone.

use std::time::Duration;

use anyhow::ensure;
use chaos_tests::chaos::{Run, run};

/// Every copy applies what is durable on itself, committed or not, so that a primary acknowledges what only it has, and a copy that is
/// overwritten by the next primary can never be equal again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a minute of faults, and two of waiting for copies that never agree; ops/test --full"]
async fn an_apply_of_an_uncommitted_entry_is_found() -> anyhow::Result<()> {
    let run_with_bug =
        Run { seed: 1, duration: Duration::from_secs(60), history: None, broken_rule: Some("ApplyUncommitted") };
    let verdict = run(&run_with_bug).await?;
    println!("{verdict}");
    let broken: Vec<&str> =
        verdict.findings.iter().filter(|finding| !finding.is_kept()).map(|finding| finding.promise).collect();
    ensure!(!broken.is_empty(), "no checker noticed:\n{verdict}");
    println!("noticed by: {broken:?}");
    Ok(())
}
