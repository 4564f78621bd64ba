//! Drills: load with a ledger, one fault, its healing, and a comparison of what was promised with what was measured.
//!
//! `load` writes and searches at a fixed rate, whatever the answers do; `measure` is the arithmetic on the history; `promise` the
//! table of promises; here is the order of events. A drill is run on a [`Patient`]: a scratch cluster, or whatever else can be hurt.

pub mod load;
pub mod measure;
pub mod promise;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::checker::{self, copies_agree};
use crate::client::Client;
use crate::cluster::Cluster;
use crate::history::History;
use crate::links::Topology;
use crate::nemesis::{crash, partition, pause};
use crate::observer::{self, Look};
use crate::wait;
use crate::workload::documents::Documents;
use load::{DIM, Load};
use measure::Measured;
use promise::{Comparison, Promises};

/// Load before the fault, to compare with.
const BEFORE: Duration = Duration::from_secs(3);
/// Load after the fault is healed: a copy that returns must not disturb either.
const AFTER: Duration = Duration::from_secs(4);
/// How long a cluster may take to become whole, before and after.
const WHOLE: Duration = Duration::from_secs(90);
/// Voting copies of each shard.
const COPIES: usize = 2;

/// How the victim fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// `kill -9`.
    Kill,
    /// SIGSTOP: it hangs, and wakes up when healed.
    Stop,
    /// The network around it falls silent.
    Partition,
    /// Nobody hears it; it hears all.
    Mute,
    /// It hears nobody; all hear it.
    Deaf,
    /// The others hear it, and it them, but not each other.
    Bridge,
}

impl Mode {
    /// How long the fault lasts: longer than the longest write gap promised.
    fn lasts(self) -> Duration {
        match self {
            Self::Kill => Duration::from_secs(6),
            Self::Stop | Self::Partition | Self::Mute | Self::Bridge => Duration::from_secs(9),
            Self::Deaf => Duration::from_secs(12),
        }
    }

    /// The cut that it is; `None` where a process is hurt instead.
    pub fn cut(self, node: usize) -> Option<Topology> {
        match self {
            Self::Kill | Self::Stop => None,
            Self::Partition => Some(Topology::Isolate(node)),
            Self::Mute => Some(Topology::Mute(node)),
            Self::Deaf => Some(Topology::Deaf(node)),
            Self::Bridge => Some(Topology::Bridge(node)),
        }
    }
}

/// Who fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Victim {
    /// A node with primaries that does not lead the metadata group.
    Follower,
    /// Whoever leads the metadata group.
    Leader,
    /// This node.
    Node(usize),
    /// The node of the primary of that shard.
    PrimaryOf(u32),
    /// The node of a read replica.
    ReadReplica,
}

/// Something that can be hurt and healed.
pub trait Patient {
    /// Its coordinator.
    fn client(&self) -> Client;
    /// Whether it can fail so. Errors: why not.
    fn can(&self, mode: Mode) -> anyhow::Result<()>;
    /// Begins the fault.
    fn inject(&mut self, mode: Mode, node: usize) -> anyhow::Result<()>;
    /// Ends it.
    fn heal(&mut self, mode: Mode, node: usize) -> impl Future<Output = anyhow::Result<()>>;
    /// What to look at when the drill could not be ended.
    fn log_tails(&self) -> String;
}

impl Patient for Cluster {
    fn client(&self) -> Client {
        Self::client(self)
    }

    fn can(&self, mode: Mode) -> anyhow::Result<()> {
        ensure!(mode.cut(1).is_none() || self.links().can_be_hurt(), "the network of the cluster cannot be hurt");
        Ok(())
    }

    fn inject(&mut self, mode: Mode, node: usize) -> anyhow::Result<()> {
        match (mode, mode.cut(node)) {
            (Mode::Kill, _) => crash::inject(self, node)?,
            (_, None) => pause::inject(self, node)?,
            (_, Some(topology)) => partition::inject(self, &topology),
        }
        Ok(())
    }

    async fn heal(&mut self, mode: Mode, node: usize) -> anyhow::Result<()> {
        match mode {
            Mode::Kill => crash::heal(self, node),
            Mode::Stop => pause::heal(self, node),
            Mode::Partition | Mode::Mute | Mode::Deaf | Mode::Bridge => {
                partition::heal(self);
                Ok(())
            }
        }
    }

    fn log_tails(&self) -> String {
        Self::log_tails(self)
    }
}

/// What is rehearsed.
#[derive(Clone, Debug)]
pub struct Drill {
    /// How the victim fails.
    pub mode: Mode,
    /// Who it is.
    pub victim: Victim,
    /// Shards of the drill's collection.
    pub shards: u32,
    /// Names the vectors and the collection.
    pub seed: u64,
}

/// How one drill went.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How the victim failed.
    pub mode: Mode,
    /// Which node it was.
    pub node: usize,
    /// Whether it led the metadata group.
    pub led_metadata: bool,
    /// What was measured.
    pub measured: Measured,
    /// Promise beside measurement.
    pub comparisons: Vec<Comparison>,
}

impl Report {
    /// Whether every promise was kept.
    pub fn is_kept(&self) -> bool {
        self.broken().next().is_none()
    }

    /// The promises that were not.
    pub fn broken(&self) -> impl Iterator<Item = &Comparison> {
        self.comparisons.iter().filter(|comparison| !comparison.is_kept)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = if self.led_metadata { "metadata leader" } else { "not the metadata leader" };
        writeln!(f, "{:?} of node {} ({role})", self.mode, self.node)?;
        for comparison in &self.comparisons {
            writeln!(f, "  {comparison}")?;
        }
        let Measured { writes_acknowledged, writes_unknown, searches, .. } = self.measured;
        write!(
            f,
            "  {writes_acknowledged} writes acknowledged, {writes_unknown} not; {searches} searches; before the fault: worst write gap \
             {} ms, worst search {} ms",
            self.measured.write_gap_before_ms, self.measured.search_before_worst_ms
        )?;
        self.measured.search_errors.iter().try_for_each(|reason| write!(f, "\n  a search failed: {reason}"))
    }
}

/// Runs a drill in a collection of its own, which is deleted at the end. `note` is told of each step, and of a collection that stays.
///
/// Cancel: the collection stays; the patient heals what can be healed at once when it is dropped.
pub async fn run(patient: &mut impl Patient, drill: &Drill, note: impl Fn(&str)) -> anyhow::Result<Report> {
    patient.can(drill.mode)?;
    let client = patient.client();
    let name = format!("drill-{:08x}", drill.seed as u32);
    let replicas = usize::from(drill.victim == Victim::ReadReplica);
    let spec = json!({ "dim": DIM, "shards": drill.shards, "copies": COPIES, "read_replicas": replicas,
        "fields": { "key": "integer" } });
    client.create_collection(&name, &spec).await?;
    let report = rehearse(patient, drill, &name, replicas, &note).await.with_context(|| patient.log_tails());
    // Whatever becomes of the deletion, the report or its error is what the drill was for.
    if let Err(reason) = delete(&client, &name).await {
        note(&format!("the collection {name} stays: {reason:#}"));
    }
    report
}

async fn delete(client: &Client, collection: &str) -> anyhow::Result<()> {
    let path = format!("/api/v1/collections/{collection}");
    client.send(reqwest::Method::DELETE, &path, None).await?.ok().map(drop)
}

async fn rehearse(
    patient: &mut impl Patient,
    drill: &Drill,
    collection: &str,
    replicas: usize,
    note: &impl Fn(&str),
) -> anyhow::Result<Report> {
    let client = patient.client();
    note(&format!("waiting until all copies of {collection} are in sync"));
    wait::until("all copies in sync", WHOLE, || whole(&client, collection, replicas)).await?;
    let history = Arc::new(History::new(None)?);
    let look = observer::look(&client, &history).await?;
    let roles = client.cluster().await?;
    let node = choose(&drill.victim, &look, &roles, collection)?;
    let led_metadata = look.leader == Some(node as u64);

    let documents = Documents {
        client: client.clone(),
        collection: collection.to_owned(),
        dim: DIM,
        seed: drill.seed,
        timeout_ms: load::TIMEOUT_MS,
        history: Arc::clone(&history),
        process: 0,
        prefer_copy: (drill.victim == Victim::ReadReplica).then(|| format!("node:{node}")),
    };
    let routing = load::Routing::new(&look, &roles, collection, drill.shards)?;
    note(&format!("load on {} shards; the victim is node {node}", drill.shards));
    let stop = CancellationToken::new();
    let load = Load { documents: documents.clone(), routing: routing.clone(), with_strong_reads: false };
    let load = tokio::spawn(load.run(stop.clone()));
    tokio::time::sleep(BEFORE).await;
    note(&format!("{:?} of node {node}", drill.mode));
    let fault_us = history.now_us();
    let hurt = patient.inject(drill.mode, node);
    tokio::time::sleep(drill.mode.lasts()).await;
    note("healing");
    let healed = match hurt {
        Ok(()) => patient.heal(drill.mode, node).await,
        Err(reason) => Err(reason),
    };
    tokio::time::sleep(AFTER).await;
    let end_us = history.now_us();
    stop.cancel();
    load.await?;
    healed?;

    note("waiting until all copies are equal");
    let whole_again = wait::until("all copies in sync", WHOLE, || whole(&client, collection, replicas)).await;
    let equal =
        copies_agree::check_with_replicas(&client, collection, drill.shards, COPIES, replicas, WHOLE).await.map(drop);
    let keys = measure::acknowledged_keys(&history.snapshot());
    note(&format!("reading {} acknowledged writes back", keys.len()));
    documents.read_back(&keys).await?;

    let history = history.snapshot();
    let lost = checker::lost::check(&history);
    let phantom = checker::phantom::check(&history);
    let measured = measure::measure(&history, &routing, fault_us, end_us);
    let promises = Promises::of(drill.mode, led_metadata, drill.victim == Victim::ReadReplica);
    let comparisons = promises.compare(&measured, &lost, &phantom, &whole_again.and(equal));
    Ok(Report { mode: drill.mode, node, led_metadata, measured, comparisons })
}

/// Whether every copy of the collection is in sync, and every read replica serves.
async fn whole(client: &Client, collection: &str, replicas: usize) -> anyhow::Result<()> {
    let cluster = client.cluster().await?;
    let shards = cluster["shards"].as_array().context("no shards")?;
    for shard in shards.iter().filter(|shard| shard["collection"] == collection) {
        let in_sync = shard["in_sync"].as_array().map_or(0, Vec::len);
        ensure!(!shard["primary"].is_null() && in_sync == COPIES, "{in_sync} copies of a shard are in sync");
        let serving = copies(shard).filter(|(role, _)| *role == "read_replica").count();
        ensure!(serving == replicas, "{serving} read replicas of a shard serve");
    }
    Ok(())
}

/// Roles and nodes of a shard's copies.
fn copies(shard: &Value) -> impl Iterator<Item = (&str, u64)> {
    let copies = shard["copies"].as_array().map_or(&[][..], Vec::as_slice);
    copies.iter().filter_map(|copy| Some((copy["role"].as_str()?, copy["node"].as_u64()?)))
}

/// The node that fails. Errors: the cluster has none like that.
fn choose(victim: &Victim, look: &Look, cluster: &Value, collection: &str) -> anyhow::Result<usize> {
    let shards = cluster["shards"].as_array().context("no shards")?;
    let ours: Vec<&Value> = shards.iter().filter(|shard| shard["collection"] == collection).collect();
    let mut primaries: BTreeMap<u64, usize> = BTreeMap::new();
    for (_, node) in ours.iter().flat_map(|shard| copies(shard)).filter(|(role, _)| *role == "primary") {
        *primaries.entry(node).or_default() += 1;
    }
    let leader = look.leader.context("no metadata leader is known")?;
    let node = match victim {
        Victim::Node(node) => {
            let known = cluster["nodes"].as_array().context("no nodes")?;
            ensure!(known.iter().any(|known| known["id"] == *node), "there is no node {node}");
            *node as u64
        }
        Victim::Leader => leader,
        Victim::Follower => {
            let follower = primaries.iter().filter(|(node, _)| **node != leader).max_by_key(|(_, count)| **count);
            *follower.context("only the metadata leader has primaries")?.0
        }
        Victim::PrimaryOf(index) => {
            let shard = ours.iter().find(|shard| shard["index"] == *index);
            let shard = shard.with_context(|| format!("the drill's collection has no shard {index}"))?;
            copies(shard).find(|(role, _)| *role == "primary").context("the shard has no primary")?.1
        }
        Victim::ReadReplica => {
            match ours.iter().flat_map(|shard| copies(shard)).find(|(role, _)| *role == "read_replica") {
                Some((_, node)) => node,
                None => bail!("the drill's collection has no read replica"),
            }
        }
    };
    Ok(usize::try_from(node)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_victim_is_who_it_should_be() {
        let copy = |copy: u64, node: u64, role: &str| json!({ "copy": copy, "node": node, "role": role });
        let shard = |index: u64, copies: Value| {
            json!({ "shard": format!("1/{index}"), "collection": "c", "index": index, "version": 1, "primary_term": 1,
                "primary": copies[0]["copy"], "in_sync": [], "lineage": 0, "copies": copies })
        };
        let cluster = json!({
            "state_version": 1,
            "metadata": { "leader": 1, "raft_term": 1 },
            "nodes": [{ "id": 1 }, { "id": 2 }, { "id": 3 }],
            "collections": [{ "name": "c" }],
            "shards": [
                shard(0, json!([copy(1, 1, "primary"), copy(2, 2, "in_sync")])),
                shard(1, json!([copy(3, 2, "primary"), copy(4, 3, "read_replica")])),
            ],
        });
        let look = observer::read(&cluster, 0, 0).expect("the API's shape");
        let chosen = |victim| choose(&victim, &look, &cluster, "c").ok();
        assert_eq!(chosen(Victim::Leader), Some(1));
        assert_eq!(chosen(Victim::Follower), Some(2));
        assert_eq!(chosen(Victim::PrimaryOf(0)), Some(1));
        assert_eq!(chosen(Victim::ReadReplica), Some(3));
        assert_eq!(
            (chosen(Victim::Node(3)), chosen(Victim::Node(4)), chosen(Victim::PrimaryOf(2))),
            (Some(3), None, None)
        );
    }
}
