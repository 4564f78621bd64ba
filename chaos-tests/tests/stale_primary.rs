//! A primary that no other node hears any more, while the coordinator does: it is deposed without knowing, and must not pass off what it
//! has for what is.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::checker::{copies_agree, fresh, linearizable, lost};
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::history::{History, Level};
use chaos_tests::links::{Network, Topology};
use chaos_tests::observer;
use chaos_tests::wait;
use chaos_tests::workload::documents::{self, Documents, MAX_STALENESS, Numbers};
use tokio_util::sync::CancellationToken;

const COLLECTION: &str = "c";
const DIM: usize = 16;
const COPIES: usize = 2;
const TIMEOUT_MS: u64 = 10_000;
/// A copy counts from when its primary's word reached it, which a busy machine may deliver this late.
const DELIVERY_MAX: Duration = Duration::from_secs(1);
/// Reads go on for so long after another primary has acknowledged a write: long enough for what the old one has to be too old.
const DEPOSED: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two reads, and between two writes.
const PAUSE: Duration = Duration::from_millis(10);

async fn put(documents: &Documents, numbers: &Numbers, key: u64) -> anyhow::Result<()> {
    documents.must_put(&[(key, numbers.version())]).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_only_the_coordinator_hears_answers_nothing_too_old() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { network: Network::Proxied, ..Options::default() }).await?;
    let client = cluster.client();
    client.create_collection(COLLECTION, &documents::collection(DIM, 1, COPIES)).await?;
    let history = Arc::new(History::new(None)?);
    let primary = wait::until("both copies in sync", PATIENCE, || async {
        let look = observer::look(&client, &history).await?;
        let register = look.register(COLLECTION, 0).context("no shard")?;
        ensure!(register.in_sync.len() == COPIES, "{register:?}");
        register.primary.map(|(_, node)| node).context("no primary")
    })
    .await?;
    let mut documents = Documents {
        client: client.clone(),
        collection: COLLECTION.into(),
        dim: DIM,
        seed: 3,
        timeout_ms: TIMEOUT_MS,
        history: Arc::clone(&history),
        process: 0,
        prefer_copy: None,
    };
    let numbers = Numbers::default();
    let key = numbers.key();
    put(&documents, &numbers, key).await?;

    // Whoever asks prefers the old primary, throughout.
    documents.prefer_copy = Some(format!("node:{primary}"));
    let stop = CancellationToken::new();
    let readers = [Level::Bounded, Level::Strong].map(|level| {
        let (documents, stop) = (Documents { process: 1 + level as u64, ..documents.clone() }, stop.clone());
        tokio::spawn(async move {
            while !stop.is_cancelled() {
                documents.read(key, level, "").await;
                tokio::time::sleep(PAUSE).await;
            }
        })
    });
    let cut = Topology::PeersFrom(usize::try_from(primary)?);
    cluster.links().cut(&cut);
    wait::until("another primary", PATIENCE, || async {
        let look = observer::look(&client, &history).await?;
        let now = look.register(COLLECTION, 0).and_then(|register| register.primary);
        ensure!(now.is_some_and(|(_, node)| node != primary), "{now:?}");
        Ok(())
    })
    .await?;
    wait::until("it to acknowledge a write", PATIENCE, || put(&documents, &numbers, key)).await?;
    let end = tokio::time::Instant::now() + DEPOSED;
    while tokio::time::Instant::now() < end {
        documents.put(&[(key, numbers.version())]).await;
        tokio::time::sleep(PAUSE).await;
    }
    stop.cancel();
    for reader in readers {
        reader.await?;
    }
    cluster.links().heal();
    copies_agree::check(&client, COLLECTION, 1, COPIES, PATIENCE).await?;
    documents.read_back(&[key]).await?;

    let operations = history.snapshot();
    let bound_us = (MAX_STALENESS + DELIVERY_MAX).as_micros() as u64;
    for finding in [
        fresh::check(&operations, Level::Bounded, bound_us),
        linearizable::check(&operations),
        lost::check(&operations),
    ] {
        println!("{finding}");
        ensure!(finding.is_kept(), "node {primary} was cut off: {finding}");
    }
    cluster.check_running()?;
    cluster.shut_down().await
}
