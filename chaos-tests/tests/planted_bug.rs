//! A bug planted in the nodes is found from outside: by the checkers alone, and by what nodes say that check themselves.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use chaos_tests::chaos::{Run, run};
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::history::History;
use chaos_tests::wait;
use chaos_tests::workload::documents::{self, Documents};

/// Every copy applies what is durable on itself, committed or not, so that a primary acknowledges what only it has, and a copy that is
/// overwritten by the next primary can never be equal again.
const BUG: &str = "ApplyUncommitted";
/// The promises of which it must break one.
const BROKEN_BY_IT: [&str; 3] =
    ["no acknowledged write is lost", "strong reads are linearizable", "copies converge to equal digests"];

/// Runs with the bug. Whether it shows hangs on what is under way when a fault strikes, which a seed does not decide.
const SEEDS: u64 = 5;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes of faults, and two of waiting for copies that never agree; ops/test --full"]
async fn an_apply_of_an_uncommitted_entry_is_found() -> anyhow::Result<()> {
    for seed in 1..=SEEDS {
        let run_with_bug = Run { broken_rule: Some(BUG), ..Run::of_seed(seed, Duration::from_secs(60)) };
        let verdict = run(&run_with_bug).await?;
        println!("{verdict}");
        let broken = verdict.findings.iter().filter(|finding| !finding.breaches.is_empty());
        let noticed: Vec<&str> =
            broken.map(|finding| finding.promise).filter(|promise| BROKEN_BY_IT.contains(promise)).collect();
        if !noticed.is_empty() {
            println!("noticed at SEED={seed} by: {noticed:?}");
            return Ok(());
        }
    }
    bail!("none of the checkers meant noticed in {SEEDS} runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_check_themselves_tell_of_it_and_the_cluster_does_not_end_well() -> anyhow::Result<()> {
    let cluster =
        Cluster::start(Options { failpoints: format!("break-a-rule=return({BUG})"), ..Options::default() }).await?;
    let client = cluster.client();
    client.create_collection("c", &documents::collection(8, 1, 2)).await?;
    let documents = Documents {
        client,
        collection: "c".into(),
        dim: 8,
        seed: 1,
        timeout_ms: 1_000,
        history: Arc::new(History::new(None)?),
        process: 0,
        prefer_copy: None,
    };
    wait::until("a broken invariant to be told of", Duration::from_secs(30), || async {
        // Acknowledged or not: a write that reaches two disks at different times is what it takes.
        documents.put(&[(1, 1)]).await;
        ensure!(!cluster.broken_invariants()?.breaches.is_empty(), "no node has told");
        Ok(())
    })
    .await?;
    let reason = cluster.shut_down().await.err().context("the cluster ended as if nothing had happened")?;
    ensure!(reason.to_string().contains("replication invariant broken"), "{reason:#}");
    Ok(())
}
