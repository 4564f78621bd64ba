//! One fault after another, by plan.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{COLLECTION, MODEST_LOG_NODE, NODES, Run, all_in_sync};
use crate::client::Client;
use crate::cluster::Cluster;
use crate::history::History;
use crate::nemesis::{self, Kind, Step, Target, Terrain};
use crate::observer;
use crate::wait;

/// How long the nemesis waits for a whole cluster before it goes on regardless.
const RECOVERY: Duration = Duration::from_secs(8);

/// Before the plan of the seed, so that also a short run has snapshots: all primaries then are where the log is short, and long before the
/// node comes back its copies are not waited for any more.
const OPENING: Step = Step {
    quiet: Duration::from_secs(1),
    kind: Kind::Crash,
    target: Target::Node(MODEST_LOG_NODE),
    lasts: nemesis::LASTS_MAX,
};

/// Injects and heals one fault after another until the time is over, and counts them. Errors: one could not be injected or healed, or a
/// process ended by itself.
pub(super) async fn hurt(
    run: &Run,
    terrain: Terrain,
    cluster: &mut Cluster,
    history: &History,
    faults: &mut BTreeMap<Kind, u64>,
) -> anyhow::Result<()> {
    let client = cluster.client();
    let (steps, end): (Box<dyn Iterator<Item = Step> + Send>, _) = match &run.steps {
        Some(steps) => (Box::new(steps.clone().into_iter()), None),
        None => {
            let planned = std::iter::once(OPENING).chain(nemesis::plan(run.seed, terrain));
            (Box::new(planned), Some(Instant::now() + run.duration))
        }
    };
    for (number, step) in (1..).zip(steps) {
        tokio::time::sleep(step.quiet).await;
        if end.is_some_and(|end| Instant::now() + step.lasts > end) {
            break;
        }
        let done = one_fault(&step, number, cluster, &client, history).await;
        done.with_context(|| format!("fault {number}: {step}"))?;
        *faults.entry(step.kind).or_default() += 1;
    }
    Ok(())
}

async fn one_fault(
    step: &Step,
    number: usize,
    cluster: &mut Cluster,
    client: &Client,
    history: &History,
) -> anyhow::Result<()> {
    let began = history.now_us();
    let look = observer::look(client, history).await.map(|mut look| {
        look.registers.retain(|register| register.collection == COLLECTION);
        look
    });
    // While nobody can say who is primary, the fault hits somebody.
    let node = look.and_then(|look| nemesis::resolve(step.target, &look)).unwrap_or(number % NODES + 1);
    nemesis::inject(cluster, step.kind, node).await?;
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

/// After a fault that could not be healed: no link is hurt any more, no disk is full, every process runs.
pub(super) async fn mend(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.links().heal();
    if let Some((_, disk)) = cluster.small_disk() {
        disk.free()?;
    }
    cluster.revive_nodes()?;
    cluster.start_missing().await
}
