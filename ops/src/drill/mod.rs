//! `susui drill`: lets a node fail under load, heals it, and holds what was measured against what is promised.
//!
//! The drill itself is `chaos_tests::drill`; here are its arguments, where the cluster comes from, and the report.

mod dev_cluster;

use std::path::PathBuf;

use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::drill::{self, Drill, Mode, Patient, Report, Victim};
use chaos_tests::links::Network;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::cli::Global;
use crate::error::Error;
use crate::output::Output;
use dev_cluster::DevCluster;

/// Shards of the collection that a failover drill writes to: more than nodes, so that each node has a primary.
const SHARDS: u32 = 4;

/// The verbs of `susui drill`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Let a node fail, and measure what clients notice
    ///
    /// Writes to every shard and searches, each every 10 ms, lets a node fail, heals it, and prints
    /// promise beside measurement: acknowledged writes lost (every one is read back), the worst time
    /// without an acknowledged write on a shard, searches without full coverage, the worst added
    /// latency, and whether all copies are equal by digest in the end.
    ///
    /// Without --dir it starts a scratch cluster of three nodes, and leaves nothing behind. With --dir
    /// it hurts the running development cluster of that directory (modes kill and stop) and works in a
    /// collection of its own. With --assert a broken promise ends with exit code 1.
    ///
    /// Interrupted, it continues a node that it stopped; one that it killed is started by `susui dev
    /// up`, and the collection drill-* stays to be deleted.
    ///
    /// Examples:
    ///   susui drill failover --mode kill --assert
    ///   susui drill failover --mode partition --leader --runs 10 --json
    #[command(verbatim_doc_comment)]
    Failover(FailoverArguments),
    /// Lose and re-join a read replica under read load
    ///
    /// As `failover`, with a collection that has a read replica: searches prefer it, its node fails and
    /// returns. Searches must go on from the other copies, writes must not notice, and the replica must
    /// serve again, equal to the others by digest.
    ///
    /// Example:
    ///   susui drill read-replica --mode stop --assert
    #[command(verbatim_doc_comment)]
    ReadReplica(Common),
}

/// How a node fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeArgument {
    /// kill -9, then a restart.
    Kill,
    /// SIGSTOP, then SIGCONT: it hangs and wakes up.
    Stop,
    /// It hears nobody and nobody hears it.
    Partition,
    /// Nobody hears it; it hears all.
    Mute,
    /// It hears nobody; all hear it.
    Deaf,
    /// The others hear it, and it them, but not each other.
    Bridge,
}

impl From<ModeArgument> for Mode {
    fn from(mode: ModeArgument) -> Self {
        match mode {
            ModeArgument::Kill => Self::Kill,
            ModeArgument::Stop => Self::Stop,
            ModeArgument::Partition => Self::Partition,
            ModeArgument::Mute => Self::Mute,
            ModeArgument::Deaf => Self::Deaf,
            ModeArgument::Bridge => Self::Bridge,
        }
    }
}

/// Arguments of all drills.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// How the node fails.
    #[arg(long, value_enum, default_value_t = ModeArgument::Kill)]
    pub mode: ModeArgument,
    /// How often, one after another on the same cluster.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// End with exit code 1 if a promise was broken.
    #[arg(long)]
    pub assert: bool,
    /// Directory of a running development cluster to hurt instead of a scratch one.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Arguments of `susui drill failover`. Without a victim: a node with primaries that does not lead the metadata group.
#[derive(Debug, Args)]
pub struct FailoverArguments {
    /// Those of all drills.
    #[command(flatten)]
    pub common: Common,
    /// Who fails.
    #[command(flatten)]
    pub victim: VictimArguments,
}

/// Who fails; at most one of them.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct VictimArguments {
    /// This node.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u16).range(1..))]
    pub node: Option<u16>,
    /// The node with the primary of this shard of the drill's collection (0 to 3).
    #[arg(long, value_name = "INDEX", value_parser = clap::value_parser!(u32).range(..i64::from(SHARDS)))]
    pub primary_of: Option<u32>,
    /// The node that leads the metadata group.
    #[arg(long)]
    pub leader: bool,
}

impl VictimArguments {
    fn victim(&self) -> Victim {
        match (self.node, self.primary_of, self.leader) {
            (Some(node), ..) => Victim::Node(node.into()),
            (_, Some(shard), _) => Victim::PrimaryOf(shard),
            (_, _, true) => Victim::Leader,
            _ => Victim::Follower,
        }
    }
}

/// What is printed under `--json`.
#[derive(Serialize)]
struct Reports {
    kept: bool,
    runs: Vec<Report>,
}

/// Runs one verb.
pub async fn run(global: &Global, command: Command) -> Result<(), Error> {
    let (common, victim, shards) = match command {
        Command::Failover(arguments) => (arguments.common, arguments.victim.victim(), SHARDS),
        // One shard: its voters and its replica are on three nodes, and only the replica fails.
        Command::ReadReplica(common) => (common, Victim::ReadReplica, 1),
    };
    let output = global.output();
    let reports = match &common.dir {
        Some(dir) => {
            let mut cluster = DevCluster::open(dir, output)?;
            repeat(&mut cluster, &common, &victim, shards, output).await?
        }
        None => {
            output.note("starting a scratch cluster of three nodes");
            let is_cut = Mode::from(common.mode).cut(1).is_some();
            let network = if is_cut { Network::Proxied } else { Network::Loopback };
            let options = Options { network, ..Options::default() };
            let mut cluster = Cluster::start(options).await.map_err(failed)?;
            let reports = repeat(&mut cluster, &common, &victim, shards, output).await?;
            cluster.shut_down().await.map_err(failed)?;
            reports
        }
    };
    output.result(&reports, || {
        let texts: Vec<String> = reports.runs.iter().map(Report::to_string).collect();
        texts.join("\n\n")
    });
    if common.assert && !reports.kept {
        let broken = reports.runs.iter().filter(|report| !report.is_kept()).count();
        return Err(Error::PromiseBroken(format!("a promise was broken in {broken} of {} runs", reports.runs.len())));
    }
    Ok(())
}

async fn repeat(
    patient: &mut impl Patient,
    common: &Common,
    victim: &Victim,
    shards: u32,
    output: Output,
) -> Result<Reports, Error> {
    let mut runs = Vec::new();
    for number in 1..=common.runs {
        let seed = uuid::Uuid::new_v4().as_u64_pair().0;
        let drill = Drill { mode: common.mode.into(), victim: victim.clone(), shards, seed };
        let note = |text: &str| output.note(&format!("run {number} of {}: {text}", common.runs));
        let report = drill::run(patient, &drill, note).await.map_err(failed)?;
        let broken: Vec<&str> = report.broken().map(|comparison| comparison.what).collect();
        let verdict =
            if broken.is_empty() { "every promise kept".to_owned() } else { format!("BROKEN: {}", broken.join(", ")) };
        output.note(&format!("run {number} of {}: {verdict}", common.runs));
        runs.push(report);
    }
    Ok(Reports { kept: runs.iter().all(Report::is_kept), runs })
}

fn failed(error: anyhow::Error) -> Error {
    Error::local(
        format!("the drill could not be run to its end: {error:#}"),
        "the cluster may need a look: susui status",
    )
}
