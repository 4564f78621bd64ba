//! Hurts a cluster by plan: which faults, against whom, for how long follows from a seed. The plan is replayed by its seed, not
//! the moment at which each fault meets the cluster.

pub mod crash;
pub mod drain;
pub mod full_disk;
pub mod lossy_link;
pub mod partition;
pub mod pause;
pub mod reset;
pub mod slow_link;

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::cluster::Cluster;
use crate::links::Network;
use crate::observer::Look;

/// Quiet before a fault.
const QUIET_MS: std::ops::Range<u64> = 800..2_000;
/// A fault that is over before anybody is taken for dead.
const SHORT_MS: std::ops::Range<u64> = 300..2_500;
/// One that outlives the node timeout.
const LONG_MS: std::ops::Range<u64> = 4_000..6_500;

/// No fault lasts longer, nor is anything that travels held back for longer.
pub const LASTS_MAX: Duration = Duration::from_millis(LONG_MS.end);

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `kill -9`, then a restart.
    Crash,
    /// SIGSTOP, then SIGCONT.
    Pause,
    /// Nobody hears the node, nor it anybody.
    Isolate,
    /// Nobody hears the node.
    Mute,
    /// The node hears nobody.
    Deaf,
    /// The others meet only over this node.
    Bridge,
    /// The coordinator and the node do not hear each other.
    CoordinatorCut,
    /// The node and all other nodes do not hear each other; the coordinator hears all.
    PeersCut,
    /// Every link to and from the node is late and narrow.
    SlowLink,
    /// Every connection of the node is reset, once.
    Reset,
    /// From and to the node packets are lost and overtake each other.
    LossyLink,
    /// An operator drains the node, and takes that back.
    Drain,
    /// The small disk is full; afterwards the node is started again, as the manual says.
    FullDisk,
    /// `kill -9` of every process at once.
    CrashAll,
}

/// The kinds that every cluster can be given whose network can be hurt.
const KINDS: [Kind; 11] = [
    Kind::Crash,
    Kind::Pause,
    Kind::Isolate,
    Kind::Mute,
    Kind::Deaf,
    Kind::Bridge,
    Kind::CoordinatorCut,
    Kind::PeersCut,
    Kind::SlowLink,
    Kind::Drain,
    Kind::CrashAll,
];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crash => "crash",
            Self::Pause => "pause",
            Self::Isolate => "isolate",
            Self::Mute => "mute",
            Self::Deaf => "deaf",
            Self::Bridge => "bridge",
            Self::CoordinatorCut => "coordinator cut",
            Self::PeersCut => "peers cut",
            Self::SlowLink => "slow link",
            Self::Reset => "reset",
            Self::LossyLink => "lossy link",
            Self::Drain => "drain",
            Self::FullDisk => "full disk",
            Self::CrashAll => "crash of all",
        })
    }
}

/// Against whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// This one.
    Node(usize),
    /// Whoever is primary of the shard when the time comes.
    PrimaryOf(usize),
    /// Whoever leads the metadata group when the time comes.
    MetadataLeader,
}

/// One fault of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Before it.
    pub quiet: Duration,
    /// What.
    pub kind: Kind,
    /// Whom.
    pub target: Target,
    /// Until it is healed.
    pub lasts: Duration,
}

/// What a plan is made for.
#[derive(Clone, Copy, Debug)]
pub struct Terrain {
    /// Nodes that may be hurt: 1 to this one.
    pub nodes: usize,
    /// Shards.
    pub shards: usize,
    /// The node on a small disk, if any.
    pub small_disk: Option<usize>,
    /// How the processes reach each other.
    pub network: Network,
}

impl Terrain {
    /// The kinds of fault that a plan for it has.
    pub fn kinds(self) -> Vec<Kind> {
        let of_network = match self.network {
            Network::Loopback => None,
            Network::Proxied => Some(Kind::Reset),
            Network::Namespaces => Some(Kind::LossyLink),
        };
        KINDS.into_iter().chain(of_network).chain(self.small_disk.map(|_| Kind::FullDisk)).collect()
    }
}

/// An endless plan: each kind comes once in every round, in an order of the round's own.
pub fn plan(seed: u64, terrain: Terrain) -> impl Iterator<Item = Step> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut round: Vec<Kind> = Vec::new();
    std::iter::from_fn(move || {
        if round.is_empty() {
            round = terrain.kinds();
            round.shuffle(&mut random);
        }
        let kind = round.pop()?;
        let target = match (kind, terrain.small_disk, random.random_range(0..10)) {
            (Kind::FullDisk, Some(node), _) => Target::Node(node),
            (_, _, 0..5) => Target::PrimaryOf(random.random_range(0..terrain.shards)),
            (_, _, 5..8) => Target::Node(random.random_range(1..=terrain.nodes)),
            _ => Target::MetadataLeader,
        };
        let lasts = match kind {
            Kind::CrashAll | Kind::Reset => SHORT_MS,
            Kind::Crash | Kind::FullDisk => LONG_MS,
            _ if random.random_bool(0.3) => SHORT_MS,
            _ => LONG_MS,
        };
        Some(Step {
            quiet: Duration::from_millis(random.random_range(QUIET_MS)),
            kind,
            target,
            lasts: Duration::from_millis(random.random_range(lasts)),
        })
    })
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:?} for {:.1} s", self.kind, self.target, self.lasts.as_secs_f64())
    }
}

/// The node a target means now.
pub fn resolve(target: Target, look: &Look) -> anyhow::Result<usize> {
    let node = match target {
        Target::Node(node) => return Ok(node),
        Target::PrimaryOf(shard) => {
            look.registers.get(shard).and_then(|register| register.primary).context("the shard has no primary")?.1
        }
        Target::MetadataLeader => look.leader.context("no metadata leader is known")?,
    };
    Ok(usize::try_from(node)?)
}

/// Begins a fault.
pub async fn inject(cluster: &mut Cluster, kind: Kind, node: usize) -> anyhow::Result<()> {
    match kind {
        Kind::Crash => crash::inject(cluster, node),
        Kind::CrashAll => crash::inject_all(cluster),
        Kind::Pause => pause::inject(cluster, node),
        Kind::SlowLink => {
            slow_link::inject(cluster, node);
            Ok(())
        }
        Kind::Reset => {
            reset::inject(cluster, node);
            Ok(())
        }
        Kind::LossyLink => {
            lossy_link::inject(cluster, node);
            Ok(())
        }
        Kind::Drain => drain::inject(cluster, node).await,
        Kind::FullDisk => full_disk::inject(cluster),
        Kind::Isolate | Kind::Mute | Kind::Deaf | Kind::Bridge | Kind::CoordinatorCut | Kind::PeersCut => {
            partition::inject(cluster, &partition::topology(kind, node));
            Ok(())
        }
    }
}

/// Ends it.
pub async fn heal(cluster: &mut Cluster, kind: Kind, node: usize) -> anyhow::Result<()> {
    match kind {
        Kind::Crash => crash::heal(cluster, node),
        Kind::CrashAll => crash::heal_all(cluster).await,
        Kind::Pause => pause::heal(cluster, node),
        Kind::FullDisk => full_disk::heal(cluster, node),
        Kind::Reset => Ok(()),
        Kind::Drain => drain::heal(cluster, node).await,
        Kind::SlowLink
        | Kind::LossyLink
        | Kind::Isolate
        | Kind::Mute
        | Kind::Deaf
        | Kind::Bridge
        | Kind::CoordinatorCut
        | Kind::PeersCut => {
            partition::heal(cluster);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERRAIN: Terrain = Terrain { nodes: 3, shards: 4, small_disk: Some(2), network: Network::Proxied };

    #[test]
    fn a_seed_is_a_plan_and_another_seed_another() {
        let first = |seed| plan(seed, TERRAIN).take(50).collect::<Vec<Step>>();
        assert_eq!(first(7), first(7));
        assert_ne!(first(7), first(8));
    }

    #[test]
    fn every_kind_comes_in_every_round_and_targets_exist() {
        let kinds = TERRAIN.kinds();
        assert!(kinds.contains(&Kind::FullDisk));
        let round = kinds.len();
        let steps: Vec<Step> = plan(3, TERRAIN).take(3 * round).collect();
        for steps in steps.chunks(round) {
            for kind in &kinds {
                assert_eq!(steps.iter().filter(|step| step.kind == *kind).count(), 1, "{kind}");
            }
        }
        assert!(steps.iter().all(|step| match step.target {
            Target::Node(node) => (1..=3).contains(&node) && (step.kind != Kind::FullDisk || node == 2),
            Target::PrimaryOf(shard) => shard < 4,
            Target::MetadataLeader => true,
        }));
    }

    #[test]
    fn packets_are_lost_where_there_are_any_and_connections_reset_where_somebody_holds_them() {
        let has = |network, kind| Terrain { network, ..TERRAIN }.kinds().contains(&kind);
        assert!(has(Network::Namespaces, Kind::LossyLink) && !has(Network::Namespaces, Kind::Reset));
        assert!(has(Network::Proxied, Kind::Reset) && !has(Network::Proxied, Kind::LossyLink));
    }

    #[test]
    fn without_a_small_disk_it_is_never_filled() {
        let steps = plan(3, Terrain { small_disk: None, ..TERRAIN }).take(40);
        assert!(steps.into_iter().all(|step| step.kind != Kind::FullDisk));
    }
}
