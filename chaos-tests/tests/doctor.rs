//! `susui doctor` against a live Postgres: as `initdb` sets it up, which is how Debian ships it, and with the profile that we ship.

use std::time::Duration;

use anyhow::ensure;
use chaos_tests::client::Client;
use chaos_tests::ports::free_ports;
use chaos_tests::postgres::PostgresServer;
use chaos_tests::process::Process;
use chaos_tests::susui::susui;
use chaos_tests::wait;
use reqwest::Method;
use serde_json::Value;

const PROFILE: &str = include_str!("../../ops/deploy/postgres/susui.conf");

/// The doctor's findings, ending with that code, of a coordinator over a server with these settings. Nodes are not needed for that.
async fn examine(settings: &str, exit_code: i32) -> anyhow::Result<Value> {
    let server = PostgresServer::start_with(settings).await?;
    let dir = tempfile::tempdir()?;
    let port = free_ports(1)?[0];
    let config = dir.path().join("coordinator.toml");
    let text = format!(
        "cluster_id = \"test\"\nhttp_listen = \"127.0.0.1:{port}\"\nnodes = [\"127.0.0.1:1\"]\ndata_dir = \"{}\"\n\
         [catalog]\nurl = \"{}\"\n[embedder]\nname = \"none\"\n",
        dir.path().join("data").display(),
        server.url()
    );
    std::fs::write(&config, text)?;
    let (config, log) = (config.to_string_lossy(), dir.path().join("log"));
    let process = Process::start("coordinator", "susui-coordinator", &["--config", &config], &[], &log)?;
    let client = Client::new(port);
    // It would come by itself soon; what is judged here is the server.
    let upkeep = wait::until("the catalog to answer", Duration::from_secs(60), || async {
        client.send(Method::POST, "/api/v1/catalog/upkeep", None).await?.ok()
    });
    upkeep.await.map_err(|error| error.context(process.log_tail()))?;
    susui(&format!("http://127.0.0.1:{port}"), &["doctor"]).await?.json(exit_code)
}

fn names(findings: &Value, fine: bool) -> Vec<&str> {
    let all = findings.as_array().into_iter().flatten();
    all.filter(|finding| finding["fine"] == fine).filter_map(|finding| finding["what"].as_str()).collect()
}

#[tokio::test]
async fn a_fresh_postgres_differs_from_the_profile_in_size_and_not_in_durability() -> anyhow::Result<()> {
    let findings = examine("", 7).await?;
    let (fine, differing) = (names(&findings, true), names(&findings, false));
    for name in ["shared_buffers", "maintenance_work_mem", "max_wal_size", "random_page_cost", "max_connections"] {
        ensure!(differing.contains(&name), "{name} is said to be fine: {findings}");
    }
    for name in ["fsync", "full_page_writes", "synchronous_commit", "autovacuum", "connections of this coordinator"] {
        ensure!(fine.contains(&name), "{name} is not said to be fine: {findings}");
    }
    let all = findings.as_array().into_iter().flatten();
    for finding in all.filter(|finding| finding["fine"] == false) {
        let told = |field: &str| finding[field].as_str().is_some_and(|text| !text.is_empty());
        ensure!(told("live") && told("advised") && finding["live"] != finding["advised"], "{finding}");
        ensure!(finding["hint"].as_str().is_some_and(|hint| hint.contains("susui.conf")), "{finding}");
    }
    Ok(())
}

#[tokio::test]
async fn the_shipped_profile_is_all_fine() -> anyhow::Result<()> {
    let findings = examine(PROFILE, 0).await?;
    let settings = PROFILE.lines().filter(|line| line.contains('=') && !line.starts_with('#')).count();
    ensure!(names(&findings, false).is_empty() && names(&findings, true).len() > settings, "{findings}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_does_not_sync_is_told_of() -> anyhow::Result<()> {
    let findings = examine(&format!("{PROFILE}\nfsync = off\nfull_page_writes = off\n"), 7).await?;
    ensure!(names(&findings, false) == ["fsync", "full_page_writes"], "{findings}");
    Ok(())
}
