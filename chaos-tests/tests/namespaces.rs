//! Chaos without proxies: every process in a network of its own, and packets between them that get lost. A primary is cut off both ways, so
//! that connections to it are opened into silence; then one is not heard; then a node sits behind a bad cable.

use std::time::Duration;

use anyhow::ensure;
use chaos_tests::chaos::{Run, run};
use chaos_tests::links::Network;
use chaos_tests::nemesis::{Kind, Step, Target};
use chaos_tests::packets::Packets;

/// Of the verdict's minimums: half of what the faults take, for machines with other things to do.
const DURATION: Duration = Duration::from_secs(10);
const QUIET: Duration = Duration::from_millis(800);
/// Longer by far than it takes until a node is taken for dead.
const LONG: Duration = Duration::from_millis(6_000);
/// Nobody is taken for dead behind a bad cable.
const SHORT: Duration = Duration::from_millis(3_500);
const SEED: u64 = 1;

#[tokio::test(flavor = "multi_thread")]
async fn lost_packets_lose_no_write() -> anyhow::Result<()> {
    if let Err(reason) = Packets::allowed().await? {
        println!("NOT RUN: network namespaces: {reason}");
        return Ok(());
    }
    let step = |kind, target, lasts| Step { quiet: QUIET, kind, target, lasts };
    let steps = vec![
        step(Kind::Isolate, Target::PrimaryOf(0), LONG),
        step(Kind::Mute, Target::PrimaryOf(1), LONG),
        step(Kind::LossyLink, Target::PrimaryOf(2), SHORT),
    ];
    let planned = steps.len() as u64;
    let verdict =
        run(&Run { network: Network::Namespaces, steps: Some(steps), ..Run::of_seed(SEED, DURATION) }).await?;
    println!("{verdict}");
    ensure!(verdict.is_good(), "{verdict}");
    let injected: u64 = verdict.faults.iter().map(|(_, count)| count).sum();
    ensure!(injected == planned, "{injected} of {planned} faults");
    Ok(())
}
