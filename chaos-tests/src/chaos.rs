//! A chaos run: load with a memory, faults by plan, then a healed cluster that must agree with the memory. Safety is checked over
//! all of it, convergence after the last fault.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::checker::{self, Finding, copies_agree};
use crate::client::Client;
use crate::cluster::{Cluster, Options};
use crate::history::{Action, History, Key, Level, Operation, Outcome};
use crate::nemesis::{self, Step, Terrain};
use crate::observer::{self, Look};
use crate::tmpfs::Tmpfs;
use crate::verdict::{Counts, Verdict};
use crate::wait;
use crate::workload::documents::{self, Documents, Numbers};
use crate::workload::{bulk, mixed, session};

const COLLECTION: &str = "chaos";
const DIM: usize = 32;
const NODES: usize = 3;
const SHARDS: u32 = 4;
const COPIES: usize = 2;
/// The node on the small disk, where one can be mounted.
const SMALL_DISK_NODE: usize = 2;
const SMALL_DISK_BYTES: u64 = 256 << 20;
/// Deadline of each call: beyond the longest failover promised, so that a call may live through one.
const TIMEOUT_MS: u64 = 6_000;
/// Processes of the mixed workload, and sessions.
const MIXED: u64 = 4;
const SESSIONS: u64 = 3;
const SEARCHERS: u64 = 2;
/// How long the nemesis waits for a whole cluster before it goes on regardless.
const RECOVERY: Duration = Duration::from_secs(8);
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
    /// A rule of replication that every node breaks, for the checkers to notice: the nodes then do not check their own invariants.
    pub broken_rule: Option<&'static str>,
}

/// Runs, heals, and judges. Errors: the cluster could not be started, a process ended by itself, or it did not become whole again.
pub async fn run(run: &Run) -> anyhow::Result<Verdict> {
    println!("chaos: SEED={} for {:?}", run.seed, run.duration);
    let small_disk = Tmpfs::is_allowed().then_some((SMALL_DISK_NODE, SMALL_DISK_BYTES));
    let options = Options {
        nodes: NODES,
        is_proxied: true,
        check_invariants: run.broken_rule.is_none(),
        failpoints: run.broken_rule.map(|rule| format!("break-a-rule=return({rule})")).unwrap_or_default(),
        small_disk,
        ..Options::default()
    };
    let mut cluster = Cluster::start(options).await?;
    let outcome = drive(run, &mut cluster).await.with_context(|| cluster.log_tails());
    let verdict = outcome.with_context(|| format!("SEED={}", run.seed))?;
    cluster.shut_down().await?;
    Ok(verdict)
}

async fn drive(run: &Run, cluster: &mut Cluster) -> anyhow::Result<Verdict> {
    let client = cluster.client();
    client.create_collection(COLLECTION, &documents::collection(DIM, SHARDS, COPIES)).await?;
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
    let observer = tokio::spawn(observer::run(client.clone(), Arc::clone(&history), stop.clone()));
    let faults = hurt(run, cluster, &history).await;
    stop.cancel();
    load.join_all().await;
    let looks = observer.await?;
    let faults = faults?;

    println!("healed; waiting until all copies are equal");
    let converged = copies_agree::check(&client, COLLECTION, SHARDS, COPIES, CONVERGENCE).await;
    cluster.check_running()?;
    let searched = read_back(&documents).await?;
    let mut verdict = judge(run, &history.snapshot(), &looks, &searched, faults);
    verdict.findings.push(Finding {
        promise: "copies converge to equal digests",
        checked: u64::from(SHARDS),
        breaches: converged.err().into_iter().map(|reason| format!("{reason:#}")).collect(),
    });
    Ok(verdict)
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

/// Injects one fault after another until the time is over, and returns how many. The last one is healed.
async fn hurt(run: &Run, cluster: &mut Cluster, history: &History) -> anyhow::Result<u64> {
    let client = cluster.client();
    let small_disk = cluster.small_disk().map(|(node, _)| node);
    let terrain = Terrain { nodes: NODES, shards: SHARDS as usize, small_disk };
    let end = Instant::now() + run.duration;
    let mut faults = 0;
    for step in nemesis::plan(run.seed, terrain) {
        tokio::time::sleep(step.quiet).await;
        if Instant::now() + step.lasts > end {
            break;
        }
        faults += 1;
        one_fault(&step, faults, cluster, &client, history).await.with_context(|| format!("fault {faults}: {step}"))?;
    }
    Ok(faults)
}

async fn one_fault(
    step: &Step,
    number: u64,
    cluster: &mut Cluster,
    client: &Client,
    history: &History,
) -> anyhow::Result<()> {
    let began = history.now_us();
    let look = observer::look(client, history).await;
    // While nobody can say who is primary, the fault hits somebody.
    let node = look.and_then(|look| nemesis::resolve(step.target, &look)).unwrap_or(number as usize % NODES + 1);
    nemesis::inject(cluster, step.kind, node)?;
    tokio::time::sleep(step.lasts).await;
    nemesis::heal(cluster, step.kind, node).await?;
    let healed = Instant::now();
    let whole = wait::until("a whole cluster", RECOVERY, || all_in_sync(client)).await;
    let recovery = match whole {
        Ok(()) => format!("whole after {:.1} s", healed.elapsed().as_secs_f64()),
        Err(_) => format!("not whole after {:.0} s", RECOVERY.as_secs_f64()),
    };
    println!("{:>7.1} s  fault {number}: {step}: node {node}; {recovery}", began as f64 / 1e6);
    cluster.check_running()
}

/// Every copy of every shard is in sync.
pub async fn all_in_sync(client: &Client) -> anyhow::Result<()> {
    let cluster = client.cluster().await?;
    for register in observer::read(&cluster, 0, 0)?.registers {
        ensure!(register.primary.is_some(), "shard {} has no primary", register.shard);
        ensure!(
            register.in_sync.len() == COPIES,
            "shard {} has {} copies in sync",
            register.shard,
            register.in_sync.len()
        );
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

fn judge(run: &Run, history: &[Operation], looks: &[Look], searched: &BTreeSet<Key>, faults: u64) -> Verdict {
    let count =
        |is_meant: &dyn Fn(&Operation) -> bool| history.iter().filter(|operation| is_meant(operation)).count() as u64;
    let is_write = |operation: &Operation| matches!(operation.action, Action::Write { .. });
    let is_read = |operation: &Operation, wanted: Level| {
        matches!(operation.action, Action::Read { level, .. } if level == wanted) && operation.outcome == Outcome::Ok
    };
    let counts = Counts {
        faults,
        failovers: observer::failovers(looks),
        writes_acknowledged: count(&|operation| is_write(operation) && operation.outcome == Outcome::Ok),
        writes_unknown: count(&|operation| is_write(operation) && operation.outcome == Outcome::Unknown),
        strong_reads: count(&|operation| is_read(operation, Level::Strong)),
        session_reads: count(&|operation| is_read(operation, Level::Session)),
        searches: count(&|operation| is_read(operation, Level::Eventual)),
        reads_failed: count(&|operation| !is_write(operation) && operation.outcome != Outcome::Ok),
    };
    let findings: Vec<Finding> = vec![
        checker::lost::check(history),
        checker::phantom::check(history),
        checker::resurrected::check(history),
        checker::linearizable::check(history),
        checker::sessions::check(history),
        checker::primaries::check(looks),
        checker::metadata::check(looks),
        checker::found::check(history, searched),
    ];
    Verdict { seed: run.seed, duration: run.duration, counts, findings }
}
