//! The drills as an operator runs them: every promise kept, exit code 0.

use anyhow::ensure;
use chaos_tests::susui::susui;

/// No drill goes to this address: each starts a cluster of its own.
const NOWHERE: &str = "http://127.0.0.1:9";
/// Runs of each drill in the full suite.
const RUNS: &str = "10";

async fn drill(arguments: &[&str], runs: &str) -> anyhow::Result<()> {
    let mut all = vec!["drill"];
    all.extend(arguments);
    all.extend(["--assert", "--runs", runs]);
    let run = susui(NOWHERE, &all).await?;
    println!("{}{}", run.stdout, run.stderr);
    let report = run.json(0)?;
    ensure!(report["kept"] == true && report["runs"].as_array().is_some_and(|all| all.len().to_string() == runs));
    Ok(())
}

#[tokio::test]
async fn a_killed_node() -> anyhow::Result<()> {
    drill(&["failover", "--mode", "kill"], "1").await
}

#[tokio::test]
async fn a_metadata_leader_cut_off() -> anyhow::Result<()> {
    drill(&["failover", "--mode", "partition", "--leader"], "1").await
}

#[tokio::test]
async fn a_lost_read_replica() -> anyhow::Result<()> {
    drill(&["read-replica", "--mode", "kill"], "1").await
}

macro_rules! in_the_full_suite {
    ($($name:ident: $($argument:literal)+;)+) => {$(
        #[tokio::test]
        #[ignore = "ten runs; ops/test --full"]
        async fn $name() -> anyhow::Result<()> {
            drill(&[$($argument),+], RUNS).await
        }
    )+};
}

in_the_full_suite! {
    kill_ten_times: "failover" "--mode" "kill";
    kill_the_metadata_leader_ten_times: "failover" "--mode" "kill" "--leader";
    stop_ten_times: "failover" "--mode" "stop";
    stop_the_metadata_leader_ten_times: "failover" "--mode" "stop" "--leader";
    partition_ten_times: "failover" "--mode" "partition";
    partition_the_metadata_leader_ten_times: "failover" "--mode" "partition" "--leader";
    mute_ten_times: "failover" "--mode" "mute";
    mute_the_metadata_leader_ten_times: "failover" "--mode" "mute" "--leader";
    deafen_ten_times: "failover" "--mode" "deaf";
    deafen_the_metadata_leader_ten_times: "failover" "--mode" "deaf" "--leader";
    bridge_ten_times: "failover" "--mode" "bridge";
    bridge_by_the_metadata_leader_ten_times: "failover" "--mode" "bridge" "--leader";
    stop_a_read_replica_ten_times: "read-replica" "--mode" "stop";
    partition_a_read_replica_ten_times: "read-replica" "--mode" "partition";
}
