//! A chaos run: load with a memory, faults by plan, then a healed cluster that must agree with the memory. Safety is checked over
//! all of it, convergence after the last fault.
//!
//! Here is the order of events; `faults` hurts, `judge` holds what was seen against the promises.

mod faults;
mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::checker::copies_agree;
use crate::claims::{self, Seen};
use crate::client::Client;
use crate::cluster::{Cluster, Options};
use crate::front::Front;
use crate::history::{Action, History, Key};
use crate::links::Network;
use crate::nemesis::{Kind, Step, Terrain};
use crate::observer::{self, Look};
use crate::tmpfs::Tmpfs;
use crate::verdict::Verdict;
use crate::wait;
use crate::workload::collections::Life;
use crate::workload::documents::{self, Documents, Numbers};
use crate::workload::{bulk, collections, mixed, session};

/// The collection that is written to.
const COLLECTION: &str = "chaos";
const DIM: usize = 32;
const NODES: usize = 3;
const SHARDS: u32 = 4;
const COPIES: usize = 2;
const READ_REPLICAS: usize = 1;
/// The node on the small disk, where one can be mounted.
const SMALL_DISK_NODE: usize = MODEST_LOG_NODE;
/// Its copies, and those of collections that come and go, take some 350 MB when they are new: logs are reserved in advance.
const SMALL_DISK_BYTES: u64 = 1 << 30;
/// Nodes that keep so little of their logs that whoever was away needs a snapshot from them.
const SHORT_LOG_NODES: [usize; 2] = [1, 3];
const SHORT_LOG: &str = "[storage]\nlog_kept_min = \"32KiB\"\nlog_kept_max = \"64KiB\"\n";
/// The other one; on the small disk there must be room for an hour.
const MODEST_LOG_NODE: usize = 2;
const MODEST_LOG: &str = "[storage]\nlog_kept_min = \"4MiB\"\nlog_kept_max = \"16MiB\"\n";
/// Deadline of each call: beyond the longest failover promised, so that a call may live through one.
const TIMEOUT_MS: u64 = 6_000;
/// Processes of the mixed workload, and sessions.
const MIXED: u64 = 4;
const SESSIONS: u64 = 3;
const SEARCHERS: u64 = 2;
/// How long a healed cluster may take until all copies are equal.
const CONVERGENCE: Duration = Duration::from_secs(120);

/// What to run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Of plan and workloads.
    pub seed: u64,
    /// How long faults are injected.
    pub duration: Duration,
    /// Where to write the history as lines of JSON.
    pub history: Option<PathBuf>,
    /// How the processes reach each other, and so how that can be hurt.
    pub network: Network,
    /// These faults, all of them, instead of those that the seed's plan has in that time.
    pub steps: Option<Vec<Step>>,
    /// A rule of replication that every node breaks, for the checkers to notice: the nodes then do not check their own invariants.
    pub broken_rule: Option<&'static str>,
}

/// Everything that a run brought to light.
struct Evidence {
    history: Arc<History>,
    looks: Vec<Look>,
    seen: Seen,
    lives: Vec<Life>,
    /// How often each kind of fault was injected and healed.
    faults: BTreeMap<Kind, u64>,
    /// Whether all copies were equal in the end.
    converged: anyhow::Result<()>,
    /// Documents that a plain search found in the end.
    searched: anyhow::Result<BTreeSet<Key>>,
    /// What a user of the cluster would have had to mend: a process that ended by itself, a fault that could not be healed.
    troubles: Vec<String>,
}

impl Run {
    /// The plan of that seed, over proxies.
    pub fn of_seed(seed: u64, duration: Duration) -> Self {
        Self { seed, duration, history: None, network: Network::Proxied, steps: None, broken_rule: None }
    }
}

impl Evidence {
    fn note(&mut self, what: &str, outcome: anyhow::Result<()>) {
        self.troubles.extend(outcome.err().map(|reason| format!("{what}: {reason:#}")));
    }
}

/// Runs, heals, and judges. Errors: the cluster could not be started; whatever goes wrong later is part of the verdict.
pub async fn run(run: &Run) -> anyhow::Result<Verdict> {
    println!("chaos: SEED={} for {:?}", run.seed, run.duration);
    let small_disk = Tmpfs::allowed();
    let options = Options {
        nodes: NODES,
        network: run.network,
        check_invariants: run.broken_rule.is_none(),
        failpoints: run.broken_rule.map(|rule| format!("break-a-rule=return({rule})")).unwrap_or_default(),
        small_disk: small_disk.is_ok().then_some((SMALL_DISK_NODE, SMALL_DISK_BYTES)),
        node_extra: SHORT_LOG_NODES
            .map(|node| (node, SHORT_LOG.into()))
            .into_iter()
            .chain([(MODEST_LOG_NODE, MODEST_LOG.into())])
            .collect(),
        ..Options::default()
    };
    let mut cluster = Cluster::start(options).await?;
    let mut second = Front::start_past_links(&cluster, "second").await?;
    let begun = drive(run, &mut cluster, &second.client()).await;
    let mut evidence = begun.with_context(|| cluster.log_tails()).with_context(|| format!("SEED={}", run.seed))?;
    evidence.note("the second coordinator", second.stop().await);
    evidence.note("the end of the cluster", cluster.end().await);
    let not_run = small_disk.err().map(|reason| format!("{}: {reason:#}", Kind::FullDisk));
    Ok(judge::judge(run, &evidence, cluster.broken_invariants()?, not_run.into_iter().collect()))
}

/// Errors: the load could not be started.
async fn drive(run: &Run, cluster: &mut Cluster, second: &Client) -> anyhow::Result<Evidence> {
    let client = cluster.client();
    client.create_collection(COLLECTION, &spec()).await?;
    wait::until("all copies in sync", Duration::from_secs(30), || all_in_sync(&client)).await?;
    let history = Arc::new(History::new(run.history.as_deref())?);
    let documents = Documents {
        client: client.clone(),
        collection: COLLECTION.into(),
        dim: DIM,
        seed: run.seed,
        timeout_ms: TIMEOUT_MS,
        history: Arc::clone(&history),
        process: 0,
        prefer_copy: None,
    };
    let stop = CancellationToken::new();
    let load = start_load(run.seed, &documents, &stop);
    let witnesses = Witnesses::start(cluster, second, &history, &stop);
    let small_disk = cluster.small_disk().map(|(node, _)| node);
    let terrain = Terrain { nodes: NODES, shards: SHARDS as usize, small_disk, network: run.network };
    let mut faults: BTreeMap<Kind, u64> = terrain.kinds().into_iter().map(|kind| (kind, 0)).collect();
    let hurt = faults::hurt(run, terrain, cluster, &history, &mut faults).await;
    stop.cancel();
    load.join_all().await;
    let (looks, seen, lives) = witnesses.join().await?;

    let mut evidence = Evidence {
        history,
        looks,
        seen,
        lives,
        faults,
        converged: Ok(()),
        searched: Ok(BTreeSet::new()),
        troubles: Vec::new(),
    };
    if hurt.is_err() {
        println!("{}", cluster.log_tails());
        evidence.note("the cluster cannot be mended", faults::mend(cluster).await);
    }
    evidence.note("a fault", hurt);
    println!("healed; waiting until all copies are equal");
    evidence.converged =
        copies_agree::check_with_replicas(&client, COLLECTION, SHARDS, COPIES, READ_REPLICAS, CONVERGENCE)
            .await
            .map(drop);
    evidence.note("a process", cluster.check_running());
    evidence.searched = read_back(&documents).await;
    Ok(evidence)
}

fn spec() -> Value {
    let mut spec = documents::collection(DIM, SHARDS, COPIES);
    spec["read_replicas"] = READ_REPLICAS.into();
    spec
}

fn start_load(seed: u64, documents: &Documents, stop: &CancellationToken) -> JoinSet<()> {
    let mut load = JoinSet::new();
    let numbers = Arc::new(Numbers::default());
    let keys = Arc::new(mixed::Keys::new(Arc::clone(&numbers)));
    let sent = Arc::new(bulk::Sent::default());
    let mut processes = (1..).map(|process| (Documents { process, ..documents.clone() }, seed.wrapping_add(process)));
    for (documents, seed) in processes.by_ref().take(MIXED as usize) {
        load.spawn(mixed::run(documents, Arc::clone(&numbers), Arc::clone(&keys), seed, stop.clone()));
    }
    for (documents, seed) in processes.by_ref().take(SESSIONS as usize) {
        load.spawn(session::run(documents, Arc::clone(&numbers), seed, stop.clone()));
    }
    for (documents, seed) in processes.by_ref().take(SEARCHERS as usize) {
        load.spawn(bulk::search(documents, Arc::clone(&sent), seed, stop.clone()));
    }
    if let Some((documents, seed)) = processes.next() {
        load.spawn(bulk::put(documents, numbers, sent, seed, stop.clone()));
    }
    load
}

/// Those who look at the cluster while it is hurt, and who change its metadata: through the coordinator behind the links, and through one
/// that reaches every node, also a leader that is cut off and does not know.
struct Witnesses {
    observers: [JoinHandle<Vec<Look>>; 2],
    nodes: JoinHandle<Seen>,
    collections: JoinHandle<Vec<Life>>,
}

impl Witnesses {
    fn start(cluster: &Cluster, second: &Client, history: &Arc<History>, stop: &CancellationToken) -> Self {
        let observe = |client| tokio::spawn(observer::run(client, Arc::clone(history), stop.clone()));
        let nodes = claims::run(cluster.node_clients(), Arc::clone(history), stop.clone());
        let creating = collections::run(cluster.client(), second.clone(), Arc::clone(history), stop.clone());
        Self {
            observers: [observe(cluster.client()), observe(second.clone())],
            nodes: tokio::spawn(nodes),
            collections: tokio::spawn(creating),
        }
    }

    async fn join(self) -> anyhow::Result<(Vec<Look>, Seen, Vec<Life>)> {
        let mut looks = Vec::new();
        for observer in self.observers {
            looks.extend(observer.await?);
        }
        Ok((looks, self.nodes.await?, self.collections.await?))
    }
}

/// Every voting copy of every shard is in sync.
async fn all_in_sync(client: &Client) -> anyhow::Result<()> {
    let look = observer::read(&client.cluster().await?, 0, 0)?;
    for register in look.registers.iter().filter(|register| register.collection == COLLECTION) {
        ensure!(register.primary.is_some(), "shard {} has no primary", register.shard);
        let in_sync = register.in_sync.len();
        ensure!(in_sync == COPIES, "shard {} has {in_sync} copies in sync", register.shard);
    }
    Ok(())
}

/// Reads every document back that any workload touched, and returns those that a plain search finds.
async fn read_back(documents: &Documents) -> anyhow::Result<BTreeSet<Key>> {
    let keys: BTreeSet<Key> = documents
        .history
        .snapshot()
        .iter()
        .filter_map(|operation| match operation.action {
            Action::Write { key, .. } => Some(key),
            _ => None,
        })
        .collect();
    let keys: Vec<Key> = keys.into_iter().collect();
    println!("reading {} documents back", keys.len());
    documents.read_back(&keys).await?;
    Ok(documents.found_by_vector(&keys).await?.into_iter().collect())
}
