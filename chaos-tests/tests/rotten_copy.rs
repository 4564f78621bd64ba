//! Copies whose files rot while their node is down are refused when it comes back, and built anew from others; what is made from other
//! files is made anew on the spot. Nobody is answered wrongly meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::checker::copies_agree;
use chaos_tests::client::Client;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::history::{History, Key};
use chaos_tests::wait;
use chaos_tests::workload::documents::{self, Documents};
use serde_json::Value;

const COLLECTION: &str = "rot";
const DIM: usize = 32;
/// On every node, so that one node has a copy of each shard.
const COPIES: usize = 3;
const VICTIM: usize = 3;
const DOCUMENTS: Key = 2048;
/// Bytes that are flipped, evenly spread over the middle half of what was written.
const FLIPPED: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// A file of a copy that rots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rotten {
    /// The largest table.
    Table,
    /// The list of the tables.
    Manifest,
    /// The write-ahead log as `kill -9` leaves it.
    LiveLog,
    /// Vectors and labels as searches read them; made anew from the tables.
    MappedVectors,
}

/// What rots in the copy of each shard.
const BY_SHARD: [Rotten; 4] = [Rotten::Table, Rotten::Manifest, Rotten::LiveLog, Rotten::MappedVectors];

impl Rotten {
    /// The largest file of the kind in a copy's directory.
    fn file(self, copy: &Path) -> anyhow::Result<PathBuf> {
        let is_meant = |name: &str| match self {
            Self::Table => name.ends_with(".sst"),
            Self::Manifest => name.starts_with("MANIFEST-"),
            Self::LiveLog => name.ends_with(".log"),
            Self::MappedVectors => name == "vectors.f16",
        };
        let mut found: Vec<(u64, PathBuf)> = Vec::new();
        for dir in [copy.to_owned(), copy.join("rocksdb")] {
            for entry in std::fs::read_dir(&dir).with_context(|| format!("{}", dir.display()))? {
                let entry = entry?;
                if is_meant(&entry.file_name().to_string_lossy()) {
                    found.push((entry.metadata()?.len(), entry.path()));
                }
            }
        }
        Ok(found.into_iter().max().with_context(|| format!("{} has no {self:?}", copy.display()))?.1)
    }
}

/// A copy whose file was made to rot.
struct Patient {
    shard: usize,
    rotten: Rotten,
    copy: u64,
    file: PathBuf,
    /// What was written to the file before.
    whole: Vec<u8>,
}

impl Patient {
    fn new(cluster: &Cluster, shard: &Value, number: usize) -> anyhow::Result<Self> {
        let rotten = BY_SHARD[number];
        let is_here = |found: &&Value| found["node"].as_u64() == Some(VICTIM as u64);
        let copy = copies(shard).find(is_here).and_then(|copy| copy["copy"].as_u64()).context("no copy there")?;
        let file = rotten.file(&cluster.data_dir(VICTIM).join(format!("copies/copy-{copy}")))?;
        let whole = rot(&file)?;
        Ok(Self { shard: number, rotten, copy, file, whole })
    }

    /// The copy's own report, where the cluster still has the copy.
    fn report<'a>(&self, shards: &'a [Value]) -> Option<&'a Value> {
        copies(&shards[self.shard]).find(|found| found["copy"] == self.copy).map(|copy| &copy["report"])
    }
}

/// Flips a few bytes of what was written, and returns that as it was.
fn rot(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = std::fs::read(file)?;
    // What was preallocated beyond it is zeroes.
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    ensure!(written > 8 * FLIPPED, "{} has only {written} bytes", file.display());
    let whole = bytes[..written].to_vec();
    for number in 0..FLIPPED {
        bytes[written / 4 + number * written / (2 * FLIPPED)] ^= 0x10;
    }
    std::fs::write(file, bytes)?;
    Ok(whole)
}

/// The shards, as the API tells them.
async fn shards(client: &Client) -> anyhow::Result<Vec<Value>> {
    let shards = client.cluster().await?["shards"].as_array().cloned().context("no shards")?;
    ensure!(shards.len() == BY_SHARD.len(), "{} shards", shards.len());
    Ok(shards)
}

fn copies(shard: &Value) -> impl Iterator<Item = &Value> {
    shard["copies"].as_array().map_or(&[][..], Vec::as_slice).iter()
}

async fn until_green(client: &Client) -> anyhow::Result<Vec<Value>> {
    wait::until("all shards to be green", PATIENCE, || async {
        let shards = shards(client).await?;
        let other = shards.iter().find(|shard| shard["health"] != "green");
        ensure!(other.is_none(), "{other:?}");
        Ok(shards)
    })
    .await
}

/// Writes documents to all copies.
async fn put(documents: &Documents, keys: &[Key]) -> anyhow::Result<()> {
    for keys in keys.chunks(128) {
        let batch: Vec<_> = keys.iter().map(|key| (*key, 1)).collect();
        wait::until("the documents to be taken", PATIENCE, || documents.must_put(&batch)).await?;
    }
    copies_agree::check(&documents.client, COLLECTION, BY_SHARD.len() as u32, COPIES, PATIENCE).await.map(drop)
}

/// Every document is found, also by those who prefer the copies on the node.
async fn ensure_found(documents: &Documents, keys: &[Key]) -> anyhow::Result<()> {
    let preferring = Documents { prefer_copy: Some(format!("node:{VICTIM}")), ..documents.clone() };
    for documents in [documents, &preferring] {
        let found: BTreeSet<Key> = documents.found_by_vector(keys).await?.into_iter().collect();
        ensure!(found.len() == keys.len(), "{} of {} documents are found", found.len(), keys.len());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rotten_files_are_found_named_and_replaced() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let client = cluster.client();
    client.create_collection(COLLECTION, &documents::collection(DIM, BY_SHARD.len() as u32, COPIES)).await?;
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
    let (in_tables, in_logs) = keys.split_at(keys.len() / 2);
    put(&documents, in_tables).await?;
    // What was written to the log becomes tables when the log is replayed; what comes then is in a live log.
    cluster.stop_node(VICTIM, PATIENCE).await?;
    cluster.start_node(VICTIM)?;
    until_green(&client).await?;
    put(&documents, in_logs).await?;
    let before = shards(&client).await?;
    cluster.kill_node(VICTIM)?;
    let patients: Vec<Patient> = (0..)
        .zip(&before)
        .map(|(number, shard)| Patient::new(&cluster, shard, number))
        .collect::<anyhow::Result<_>>()?;
    cluster.start_node(VICTIM)?;

    let (mapped, refused): (Vec<&Patient>, Vec<&Patient>) =
        patients.iter().partition(|patient| patient.rotten == Rotten::MappedVectors);
    // One may be replaced before the next one is found, so they are watched at once.
    let reasons: Mutex<BTreeMap<usize, String>> = Mutex::default();
    wait::until("each rotten copy to be refused", PATIENCE, || async {
        for shard in 0..BY_SHARD.len() {
            // What is not looked at when a copy is opened is found by the first who reads it. Whoever compares copies reads all of them.
            let _ = client.digest(COLLECTION, shard as u32).await;
        }
        let shards = shards(&client).await?;
        let mut reasons = reasons.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        for patient in &refused {
            let report = patient.report(&shards).filter(|report| report["index_state"] == "corrupt");
            if let Some(reason) = report.and_then(|report| report["reason"].as_str()) {
                reasons.insert(patient.shard, reason.to_owned());
            }
        }
        let left = refused.iter().find(|patient| !reasons.contains_key(&patient.shard));
        ensure!(left.is_none(), "not refused: {:?}", left.map(|patient| (patient.rotten, &shards[patient.shard])));
        Ok(())
    })
    .await?;
    let reasons = reasons.into_inner()?;
    for patient in &refused {
        let (reason, name) = (&reasons[&patient.shard], patient.file.file_name().context("a file")?.to_string_lossy());
        println!("{:?} of copy {}: {reason}", patient.rotten, patient.copy);
        ensure!(reason.contains(&*name), "{name} is not named: {reason}");
    }
    ensure_found(&documents, &keys).await.context("beside the rotten copies")?;

    wait::until("new copies in sync", PATIENCE, || async {
        let shards = shards(&client).await?;
        let left = refused.iter().find(|patient| patient.report(&shards).is_some());
        ensure!(left.is_none(), "the copy with its {:?} is still there", left.map(|patient| patient.rotten));
        Ok(())
    })
    .await?;
    let after = until_green(&client).await?;
    let chunks = copies_agree::check(&client, COLLECTION, BY_SHARD.len() as u32, COPIES, PATIENCE).await?;
    ensure!(chunks == DOCUMENTS, "{chunks} of {DOCUMENTS} documents are left");
    ensure_found(&documents, &keys).await.context("with the new copies")?;
    for patient in mapped {
        ensure!(patient.report(&after).is_some(), "copy {} was thrown away", patient.copy);
        let now = std::fs::read(&patient.file)?;
        ensure!(now.starts_with(&patient.whole), "{} is not as it was", patient.file.display());
    }
    cluster.shut_down().await
}
