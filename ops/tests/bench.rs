//! `susui bench vectors` from end to end, on a scratch cluster of the real programs.

use std::process::Command;

use serde_json::Value;

/// Enough rows for a trained index in the only shard.
const ROWS: &str = "12000";

#[test]
fn a_sweep_finds_more_with_more_effort_and_everything_exactly() {
    let dir = tempfile::tempdir().expect("a directory");
    let svg = dir.path().join("recall.svg");
    let run = Command::new(env!("CARGO_BIN_EXE_susui"))
        .args(["--json", "bench", "vectors", "--n", ROWS, "--dim", "32", "--query-count", "50", "--nodes", "3"])
        .args(["--shards", "1", "--copies", "2", "--nprobe", "1,64", "--oversample", "20", "--target-recall", "0.9"])
        .args(["--compare-faiss", "--svg"])
        .arg(&svg)
        .output()
        .expect("susui runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let report: Value = serde_json::from_slice(&run.stdout).expect("prints JSON");
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
