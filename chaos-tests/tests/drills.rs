//! The drills as an operator runs them: every promise kept, exit code 0.

use anyhow::ensure;
use chaos_tests::susui::susui;

/// No drill goes to this address: each starts a cluster of its own.
const NOWHERE: &str = "http://127.0.0.1:9";

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
    ($($name:ident: $($argument:literal)+, $runs:literal;)+) => {$(
        #[tokio::test]
        #[ignore = "several runs; ops/test --full"]
        async fn $name() -> anyhow::Result<()> {
            drill(&[$($argument),+], $runs).await
        }
    )+};
}

in_the_full_suite! {
    kill_ten_times: "failover" "--mode" "kill", "10";
    kill_the_metadata_leader_ten_times: "failover" "--mode" "kill" "--leader", "10";
    stop_ten_times: "failover" "--mode" "stop", "10";
    stop_the_metadata_leader_ten_times: "failover" "--mode" "stop" "--leader", "10";
    partition_ten_times: "failover" "--mode" "partition", "10";
    partition_the_metadata_leader_ten_times: "failover" "--mode" "partition" "--leader", "10";
    mute_five_times: "failover" "--mode" "mute", "5";
    mute_the_metadata_leader_five_times: "failover" "--mode" "mute" "--leader", "5";
    deafen_five_times: "failover" "--mode" "deaf", "5";
    deafen_the_metadata_leader_five_times: "failover" "--mode" "deaf" "--leader", "5";
    bridge_five_times: "failover" "--mode" "bridge", "5";
    bridge_by_the_metadata_leader_five_times: "failover" "--mode" "bridge" "--leader", "5";
    stop_a_read_replica_five_times: "read-replica" "--mode" "stop", "5";
    partition_a_read_replica_five_times: "read-replica" "--mode" "partition", "5";
}
