//! `susui bench` from end to end, on scratch clusters of the real programs.

use std::process::Command;
use std::time::Duration;

use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::wait::until;
use serde_json::{Value, json};

/// Enough rows for a trained index in the only shard.
const ROWS: &str = "12000";

/// Runs `susui --json` with arguments that hold no spaces to its end, and gives what it printed.
fn bench(arguments: &str) -> Value {
    let run = Command::new(env!("CARGO_BIN_EXE_susui"))
        .arg("--json")
        .args(arguments.split(' '))
        .output()
        .expect("susui runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    serde_json::from_slice(&run.stdout).expect("prints JSON")
}

#[test]
fn a_sweep_finds_more_with_more_effort_and_everything_exactly() {
    let dir = tempfile::tempdir().expect("a directory");
    let svg = dir.path().join("recall.svg");
    let report = bench(&format!(
        "bench vectors --n {ROWS} --dim 32 --query-count 50 --nodes 3 --shards 1 --copies 2 --nprobe 1,64 --oversample 20 \
         --target-recall 0.9 --compare-faiss --svg {}",
        svg.display()
    ));
    assert_eq!(report["filled"]["vectors"], 12_000, "{report}");
    // On a machine that stalls, the second copy may leave the in-sync set for a while: reported, not an error.
    let copies = report["filled"]["copies_acked_min"].as_u64().expect("a count");
    assert!((1..=2).contains(&copies), "{report}");
    assert!(report["filled"]["searches_meanwhile"].as_u64() > Some(0), "{report}");
    assert_eq!(report["index_states"]["indexed"], 2, "{report}");
    let recall_of = |label: &str| {
        let settings = report["settings"].as_array().expect("a list");
        let found = settings.iter().find(|setting| setting["label"] == label);
        found.and_then(|setting| setting["recall_at_10"].as_f64()).unwrap_or_else(|| panic!("no {label} in {report}"))
    };
    // Stored vectors are half floats: a tie at the tenth place may come out otherwise.
    assert!(recall_of("exact") >= 0.99, "{report}");
    let (little, much) = (recall_of("nprobe 1, oversample 20"), recall_of("nprobe 64, oversample 20"));
    assert!(little < 0.6 && much > 0.9, "recall {little} and {much}: {report}");
    assert!(report["memory"]["anonymous_per_vector"].as_f64() > Some(0.0), "{report}");

    let efforts = report["faiss"]["efforts"].as_array().expect("a list");
    for effort in efforts {
        let number = |key: &str| effort[key].as_f64().unwrap_or_else(|| panic!("no {key} in {effort}"));
        // The same index and candidates: scored exactly they can only come out better.
        assert!(number("ours_recall") >= number("faiss_recall") && number("faiss_us") > 0.0, "{effort}");
    }
    let guide = &report["faiss"]["guide"];
    assert_eq!(guide["index"], "PCA8,IVF100,PQ8");
    assert!(guide["recall"].as_f64() > Some(0.0) && guide["reductions"][0]["loss"].as_f64() > Some(0.0), "{guide}");
    let drawn = std::fs::read_to_string(&svg).expect("a plot");
    assert!(drawn.starts_with("<svg") && drawn.contains("nprobe 64, oversample 20"), "{drawn}");
}

#[test]
fn the_http_path_is_measured_beside_an_echo_and_finds_everything() {
    // Below the training floor: exact search, so that every way of asking must find all.
    let report = bench(
        "bench http --n 1000 --dim 16 --query-count 50 --nodes 3 --shards 4 --copies 2 --connections 4 --requests 200 \
         --batch-searches 10",
    );
    let number = |of: &Value, key: &str| of[key].as_f64().unwrap_or_else(|| panic!("no {key} in {report}"));
    assert_eq!(report["shards"], 4, "{report}");
    // Stored vectors are half floats: a tie at the tenth place may come out otherwise.
    for recall in ["recall_at_10", "batch_recall_at_10"] {
        assert!(number(&report, recall) >= 0.99, "{report}");
    }
    let (searches, echoes) = (number(&report, "searches_per_second"), number(&report, "echoes_per_second"));
    assert!(searches > 0.0 && echoes > 0.0, "{report}");
    assert!((number(&report, "share_of_echo") - searches / echoes).abs() < 1e-9, "{report}");
    let batched = number(&report, "batched_searches_per_second");
    assert!((number(&report, "batch_speed_up") - batched / searches).abs() < 1e-9, "{report}");
    let alone = &report["alone"];
    let (whole, shard) = (number(alone, "p50_ms"), number(alone, "shard_p50_ms"));
    assert!(whole > shard && shard > 0.0 && number(alone, "p99_ms") >= whole, "{report}");
    assert!(number(alone, "added_p50_ms") >= number(alone, "coordinator_p50_ms"), "{report}");
}

#[tokio::test]
async fn the_stages_of_a_query_add_up_to_what_its_client_waits() {
    let dir = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::start(Options { fake_embedder: true, ..Options::default() }).await.expect("starts");
    let client = cluster.client();
    let spec = json!({ "embedder": "fake-hash-384", "shards": 2, "copies": 2 });
    client.create_collection("c", &spec).await.expect("creates");
    let everywhere = || async { client.search("c", &[1.0; 384], json!({})).await?.ok() };
    until("the first search", Duration::from_secs(60), everywhere).await.expect("searches");
    let texts = dir.path().join("texts");
    std::fs::write(&texts, "how do I stop a node?\n\n what is a shard?\n").expect("writes");
    let line = format!("--url {} bench query --texts {} -c c --repeat 3", cluster.url(), texts.display());
    let asked = tokio::task::spawn_blocking(move || bench(&line));
    let report = asked.await.expect("joins");
    assert_eq!(report["queries"], 6);
    let stages = report["stages"].as_array().expect("a list");
    let names: Vec<&str> = stages.iter().filter_map(|stage| stage["stage"].as_str()).collect();
    assert_eq!(names, ["embed", "cache", "scatter", "queued", "service", "fetch", "other", "outside"]);
    let number = |of: &Value, key: &str| of[key].as_f64().unwrap_or_else(|| panic!("no {key} in {report}"));
    let sum: f64 = stages.iter().filter(|stage| stage["nested"] == false).map(|stage| number(stage, "mean_ms")).sum();
    let mean = number(&report, "mean_ms");
    assert!(mean > 0.0 && (sum - mean).abs() < 0.01 * mean, "{sum} of {mean}: {report}");
    cluster.shut_down().await.expect("stops");
}
