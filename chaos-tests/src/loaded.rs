//! A cluster under the load of the drills, for scenarios that are about what the load does not notice.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::cluster::{Cluster, Options};
use crate::drill::load::{DIM, Load, Routing, TIMEOUT_MS};
use crate::drill::measure::{self, Measured};
use crate::history::{Action, History, Level, Operation, Outcome};
use crate::observer::{self, Look};
use crate::wait;
use crate::workload::documents::{self, Documents};

const COLLECTION: &str = "load";
const SHARDS: u32 = 4;
const COPIES: usize = 2;
/// Least calls of each kind that a load must have made to mean anything.
const CALLS_MIN: usize = 200;

/// The cluster with its load.
pub struct Loaded {
    /// The cluster.
    pub cluster: Cluster,
    /// Everything the load did.
    pub history: Arc<History>,
    routing: Routing,
    stop: CancellationToken,
    load: JoinHandle<()>,
}

impl Loaded {
    /// Starts a cluster and its load.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let cluster = Cluster::start(options).await?;
        let client = cluster.client();
        client.create_collection(COLLECTION, &documents::collection(DIM, SHARDS, COPIES)).await?;
        let history = Arc::new(History::new(None)?);
        let look = wait_whole(&client, &history).await?;
        let routing = Routing::new(&look, &client.cluster().await?, COLLECTION, SHARDS)?;
        let documents = Documents {
            client: client.clone(),
            collection: COLLECTION.into(),
            dim: DIM,
            seed: 5,
            timeout_ms: TIMEOUT_MS,
            history: Arc::clone(&history),
            process: 0,
            prefer_copy: None,
        };
        let stop = CancellationToken::new();
        let load = Load { documents, routing: routing.clone(), with_strong_reads: true };
        let load = tokio::spawn(load.run(stop.clone()));
        Ok(Self { cluster, history, routing, stop, load })
    }

    /// Waits until every copy is in sync.
    pub async fn wait_whole(&self) -> anyhow::Result<Look> {
        wait_whole(&self.cluster.client(), &self.history).await
    }

    /// Ends the load and the cluster, and returns what was measured from `from_us` on. Errors: any call failed.
    pub async fn check(mut self, from_us: u64) -> anyhow::Result<Measured> {
        let end_us = self.history.now_us();
        self.stop.cancel();
        self.load.await?;
        self.cluster.check_running()?;
        let history = self.history.snapshot();
        let count = |is_meant: fn(&Operation) -> bool| history.iter().filter(|operation| is_meant(operation)).count();
        let writes = count(|operation| matches!(operation.action, Action::Write { .. }));
        let strong = count(|operation| matches!(operation.action, Action::Read { level: Level::Strong, .. }));
        let searches = count(|operation| matches!(operation.action, Action::Read { level: Level::Eventual, .. }));
        let measured = measure::measure(&history, &self.routing, from_us, end_us);
        println!(
            "{writes} writes, {searches} searches, {strong} strong reads; worst write gap {} ms",
            measured.write_gap_ms
        );
        ensure!([writes, strong, searches].into_iter().all(|calls| calls >= CALLS_MIN), "too little load");
        let failed: Vec<_> = history.iter().filter(|operation| operation.outcome != Outcome::Ok).collect();
        ensure!(failed.is_empty(), "{} operations failed, the first: {:?}", failed.len(), failed[0]);
        self.cluster.shut_down().await?;
        Ok(measured)
    }
}

async fn wait_whole(client: &Client, history: &History) -> anyhow::Result<Look> {
    wait::until("all copies in sync", Duration::from_secs(60), || async {
        let look = observer::look(client, history).await?;
        ensure!(look.registers.len() == SHARDS as usize, "{} shards", look.registers.len());
        for register in &look.registers {
            register.primary.with_context(|| format!("shard {} has no primary", register.shard))?;
            ensure!(register.in_sync.len() == COPIES, "shard {}: {:?} in sync", register.shard, register.in_sync);
        }
        Ok(look)
    })
    .await
}
