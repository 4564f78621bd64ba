//! The cluster that is measured, and the collection in it: a scratch cluster of its own, or the running one at `--url`.

use std::collections::BTreeMap;
use std::time::Duration;

use chaos_tests::cluster::{Cluster, Options};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::PatientArguments;
use crate::cli::Global;
use crate::client::Client;
use crate::collection;
use crate::error::Error;
use crate::output::Output;
use crate::settled;
use crate::status;
use crate::wire::collection::{CollectionInfo, CollectionRequest, IndexRequest};

/// A result of the retrieval cache would be a measurement of the cache.
const COORDINATOR_EXTRA: &str = "[cache]\nenabled = false\n";
/// Longest wait for the index, generous: a million rows train and build for minutes on two cores.
const INDEX_WAIT: Duration = Duration::from_secs(1800);
/// Longest wait until the copies of a new collection are open and in sync.
const IN_SYNC_WAIT: Duration = Duration::from_secs(60);
/// Primaries measure what efforts find once nobody has written for five seconds, which nothing reports: nodes that were idle for longer
/// have done so.
const IDLE_FOR: Duration = Duration::from_secs(7);
/// Share of a core that idle nodes use together at most.
const IDLE_SHARE: f64 = 0.2;
/// Longest wait for that; the bench then goes on and says so.
const IDLE_WAIT: Duration = Duration::from_secs(300);
/// Between two looks at what the nodes use.
const IDLE_LOOK: Duration = Duration::from_secs(1);
/// Clock ticks a second in `/proc/PID/stat`.
const TICKS_PER_SECOND: f64 = 100.0;
/// Between two looks at the cluster.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A collection in a cluster.
pub struct Patient {
    cluster: Option<Cluster>,
    /// Of the coordinator.
    pub url: String,
    /// Calls to it.
    pub client: Client,
    /// The collection.
    pub collection: CollectionInfo,
}

/// Memory of the nodes, summed, bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Memory {
    /// Anonymous pages (`RssAnon`): heap, RocksDB's caches and memtables, thread stacks.
    pub anonymous: u64,
    /// Resident pages of files (`RssFile`): the vectors that are read for re-scoring, and the program.
    pub file: u64,
    /// What the copies report as held for searching.
    pub reported: u64,
}

impl Patient {
    /// Starts or finds the cluster and creates the collection of `dim` dimensions.
    pub async fn admit(global: &Global, arguments: &PatientArguments, dim: usize) -> Result<Self, Error> {
        let output = global.output();
        let (cluster, url) = if arguments.running {
            (None, global.url.clone())
        } else {
            output.note(&format!("starting a scratch cluster of {} nodes", arguments.nodes));
            let options = Options {
                nodes: arguments.nodes.into(),
                coordinator_extra: COORDINATOR_EXTRA.to_owned(),
                check_invariants: false,
                ..Options::default()
            };
            let cluster = Cluster::start(options).await.map_err(failed)?;
            let url = cluster.url();
            (Some(cluster), url)
        };
        let client = Client::new(&url, global.timeout, global.api_key.as_deref())?;
        let name = format!("bench-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let collection = collection::create(&client, &name, &request(arguments, dim)).await?;
        Ok(Self { cluster, url, client, collection })
    }

    /// Waits until every copy is in sync: what is loaded from then on is durable on all of them when it is acknowledged, unless one
    /// falls behind meanwhile.
    pub async fn wait_in_sync(&self) -> Result<(), Error> {
        let begun = Instant::now();
        loop {
            let report = status::fetch(&self.client).await?;
            let mut shards = report.shards.iter().filter(|shard| shard.collection == self.collection.name);
            let Some(behind) = shards.find(|shard| shard.health != "green") else { return Ok(()) };
            if begun.elapsed() > IN_SYNC_WAIT {
                let (name, index, health) = (&behind.collection, behind.index, &behind.health);
                return Err(Error::CheckFailed(format!(
                    "{name}/{index} is {health} after {IN_SYNC_WAIT:?}, not green"
                )));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until every copy has moved its rows into an index or is too small for one. Gives the time it took.
    pub async fn wait_indexed(&self, output: Output, rows: u64) -> Result<Duration, Error> {
        let waited = settled::wait(&self.client, output, &self.collection, Some(rows), INDEX_WAIT).await;
        waited.map(|(took, _)| took)
    }

    /// Waits until the nodes of a scratch cluster do nothing by themselves any more.
    pub async fn wait_idle(&mut self, output: Output) -> Result<(), Error> {
        let pids = self.pids()?;
        if pids.is_empty() {
            return Ok(());
        }
        let spinner = output.spinner();
        spinner.set_message("waiting for idle nodes");
        let (begun, mut idle_since, mut used) = (Instant::now(), Instant::now(), processor_seconds(&pids)?);
        while idle_since.elapsed() < IDLE_FOR && begun.elapsed() < IDLE_WAIT {
            let looked = Instant::now();
            tokio::time::sleep(IDLE_LOOK).await;
            let now_used = processor_seconds(&pids)?;
            if (now_used - used) / looked.elapsed().as_secs_f64() > IDLE_SHARE {
                idle_since = Instant::now();
            }
            used = now_used;
        }
        spinner.finish_and_clear();
        if idle_since.elapsed() < IDLE_FOR {
            output.note(&format!("the nodes are still at work after {}", humantime::format_duration(IDLE_WAIT)));
        }
        Ok(())
    }

    /// Processes of the nodes, of a scratch cluster only.
    fn pids(&mut self) -> Result<Vec<u32>, Error> {
        let Some(cluster) = &mut self.cluster else { return Ok(Vec::new()) };
        (1..=cluster.node_count()).map(|node| Ok(cluster.node(node).map_err(failed)?.pid())).collect()
    }

    /// Index states over the copies, with their number: `{"indexed": 8}`.
    pub async fn index_states(&self) -> Result<BTreeMap<String, u32>, Error> {
        let report = status::fetch(&self.client).await?;
        let mut states = BTreeMap::new();
        let shards = report.shards.iter().filter(|shard| shard.collection == self.collection.name);
        for copy in shards.flat_map(|shard| &shard.copies).filter_map(|copy| copy.report.as_ref()) {
            *states.entry(copy.index_state.clone()).or_default() += 1;
        }
        Ok(states)
    }

    /// Memory of the nodes; anonymous and file pages only for a scratch cluster, whose processes are ours to look into.
    pub async fn memory(&mut self) -> Result<Memory, Error> {
        let report = status::fetch(&self.client).await?;
        let mut memory = Memory::default();
        let shards = report.shards.iter().filter(|shard| shard.collection == self.collection.name);
        memory.reported = shards
            .flat_map(|shard| &shard.copies)
            .filter_map(|copy| copy.report.as_ref())
            .map(|r| r.memory_bytes)
            .sum();
        for pid in self.pids()? {
            let text = process_file(pid, "status")?;
            memory.anonymous += kibibytes(&text, "RssAnon:") * 1024;
            memory.file += kibibytes(&text, "RssFile:") * 1024;
        }
        Ok(memory)
    }

    /// Deletes the collection and stops a scratch cluster.
    pub async fn discharge(self) -> Result<(), Error> {
        match self.cluster {
            Some(cluster) => cluster.shut_down().await.map_err(failed),
            None => {
                let _: Value = self.client.delete(&["api", "v1", "collections", &self.collection.name]).await?;
                Ok(())
            }
        }
    }
}

fn process_file(pid: u32, name: &str) -> Result<String, Error> {
    let path = std::path::PathBuf::from(format!("/proc/{pid}/{name}"));
    std::fs::read_to_string(&path).map_err(|error| Error::file(&path, &error))
}

/// Processor time that the processes have used so far.
fn processor_seconds(pids: &[u32]) -> Result<f64, Error> {
    pids.iter().map(|pid| Ok(ticks(&process_file(*pid, "stat")?) / TICKS_PER_SECOND)).sum()
}

/// User and system time in the text of `/proc/PID/stat`, clock ticks. The name of the program, in brackets, may hold anything.
fn ticks(stat: &str) -> f64 {
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // The twelfth and thirteenth field behind the name.
    behind_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum()
}

/// A line of `/proc/PID/status`; 0 where there is none.
fn kibibytes(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn request(arguments: &PatientArguments, dim: usize) -> CollectionRequest {
    let index =
        IndexRequest { nlist: arguments.nlist, m: arguments.m, nbits: arguments.nbits, ..IndexRequest::default() };
    CollectionRequest {
        dim: u32::try_from(dim).ok(),
        shards: arguments.shards,
        copies: arguments.copies,
        pca_dim: arguments.pca_dim,
        index: (index != IndexRequest::default()).then_some(index),
        ..CollectionRequest::default()
    }
}

fn failed(error: anyhow::Error) -> Error {
    Error::local(format!("the scratch cluster: {error:#}"), "susui-node and susui-coordinator must be beside susui")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_lines_are_read() {
        let stat = "42 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 700 55 0 0 20 0";
        assert_eq!(ticks(stat), 755.0);
        let status = "Name:\tsusui-node\nVmRSS:\t  2000 kB\nRssAnon:\t    1500 kB\nRssFile:\t     500 kB\n";
        assert_eq!((kibibytes(status, "RssAnon:"), kibibytes(status, "RssShmem:")), (1500, 0));
    }
}
