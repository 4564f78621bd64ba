//! A copy whose files rot while its node is down is refused when the node comes back, and built anew from another one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::checker::copies_agree;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::history::{History, Key};
use chaos_tests::wait;
use chaos_tests::workload::documents::{self, Documents};
use serde_json::Value;

const COLLECTION: &str = "rot";
const DIM: usize = 32;
const COPIES: usize = 2;
const DOCUMENTS: Key = 1024;
/// In each stretch of so many bytes one is flipped: every block of a table is hit.
const STRIDE: usize = 512;
const PATIENCE: Duration = Duration::from_secs(60);

/// The only shard, as the API tells it.
async fn shard(cluster: &Cluster) -> anyhow::Result<Value> {
    let reply = cluster.client().cluster().await?;
    reply["shards"].get(0).cloned().context("no shard")
}

fn copies(shard: &Value) -> impl Iterator<Item = &Value> {
    shard["copies"].as_array().map_or(&[][..], Vec::as_slice).iter()
}

/// The largest table file below a directory.
fn largest_table(dir: &Path) -> anyhow::Result<PathBuf> {
    let mut tables: Vec<(u64, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("{}", dir.display()))? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "sst") {
            tables.push((entry.metadata()?.len(), entry.path()));
        }
    }
    Ok(tables.into_iter().max().context("the copy has no table file")?.1)
}

fn rot(file: &Path) -> anyhow::Result<()> {
    let mut bytes = std::fs::read(file)?;
    bytes.chunks_mut(STRIDE).for_each(|stretch| {
        let middle = stretch.len() / 2;
        stretch[middle] ^= 0x10;
    });
    Ok(std::fs::write(file, bytes)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_with_a_rotten_table_is_refused_by_name_and_built_anew() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { check_invariants: true, ..Options::default() }).await?;
    let client = cluster.client();
    client.create_collection(COLLECTION, &documents::collection(DIM, 1, COPIES)).await?;
    let documents = Documents {
        client: client.clone(),
        collection: COLLECTION.into(),
        dim: DIM,
        seed: 11,
        timeout_ms: 10_000,
        history: Arc::new(History::new(None)?),
        process: 0,
        prefer_copy: None,
    };
    let keys: Vec<Key> = (0..DOCUMENTS).collect();
    for keys in keys.chunks(128) {
        let batch: Vec<_> = keys.iter().map(|key| (*key, 1)).collect();
        wait::until("the documents to be taken", PATIENCE, || async {
            documents.put(&batch).await.context("not acknowledged")
        })
        .await?;
    }
    copies_agree::check(&client, COLLECTION, 1, COPIES, PATIENCE).await?;

    let before = shard(&cluster).await?;
    let victim = copies(&before).find(|copy| copy["role"] == "in_sync").context("nobody follows")?;
    let (copy, node) = (victim["copy"].as_u64().context("no id")?, victim["node"].as_u64().context("no node")?);
    // What was written to the log only becomes table files when the log is replayed: at the second start.
    cluster.stop_node(node as usize, PATIENCE).await?;
    cluster.start_node(node as usize)?;
    wait::until("the node to be back", PATIENCE, || async {
        let shard = shard(&cluster).await?;
        ensure!(shard["health"] == "green", "{shard}");
        Ok(())
    })
    .await?;
    cluster.stop_node(node as usize, PATIENCE).await?;
    let table = largest_table(&cluster.data_dir(node as usize).join(format!("copies/copy-{copy}/rocksdb")))?;
    rot(&table)?;
    cluster.start_node(node as usize)?;

    let name = table.file_name().context("a file")?.to_string_lossy().into_owned();
    let reason = wait::until("the copy to be refused", PATIENCE, || async {
        let shard = shard(&cluster).await?;
        let refused = copies(&shard).find(|found| found["copy"] == copy && found["report"]["index_state"] == "corrupt");
        let reason = refused.and_then(|refused| refused["report"]["reason"].as_str()).map(str::to_owned);
        reason.with_context(|| format!("not refused: {shard}"))
    })
    .await?;
    println!("copy {copy} on node {node}: {reason}");
    ensure!(reason.contains(&name), "{name} is not named: {reason}");
    let all: BTreeSet<Key> = keys.iter().copied().collect();
    let found = documents.found_by_vector(&keys).await?.into_iter().collect::<BTreeSet<Key>>();
    ensure!(found == all, "{} of {} documents are found beside the rotten copy", found.len(), all.len());

    wait::until("a new copy in sync", PATIENCE, || async {
        let shard = shard(&cluster).await?;
        ensure!(copies(&shard).all(|found| found["copy"] != copy), "copy {copy} is still there");
        ensure!(shard["health"] == "green", "{shard}");
        Ok(())
    })
    .await?;
    let chunks = copies_agree::check(&client, COLLECTION, 1, COPIES, PATIENCE).await?;
    ensure!(chunks == DOCUMENTS, "{chunks} of {DOCUMENTS} documents are left");
    let rebuilt = Documents { prefer_copy: Some(format!("node:{node}")), ..documents };
    let found = rebuilt.found_by_vector(&keys).await?.into_iter().collect::<BTreeSet<Key>>();
    ensure!(found == all, "{} of {} documents are found in the new copy", found.len(), all.len());
    cluster.shut_down().await
}
