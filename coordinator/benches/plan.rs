//! What a read's decisions cost before anything is sent: planning, and a whole scatter with answers that come at once.
//!
//! A loop of its own instead of criterion, whose dependencies switch on features of crates the embedder rests on, so that candle would be
//! compiled a second time for this one number.

use std::hint::black_box;
use std::time::{Duration, Instant};

use cluster_config::ids::NodeId;
use cluster_config::search::{Consistency, ShardAnswer};
use coordinator::cluster::client::ShardReply;
use coordinator::cluster::load::Sample;
use coordinator::cluster::stats::{Board, NodeStats};
use coordinator::cluster::twin::test_state;
use coordinator::retrieve::gather::{Gather, Rules};
use coordinator::retrieve::plan::{PlanOptions, drift_unchosen, plan_read};
use coordinator::retrieve::session::Session;

const NODES: u64 = 12;
const SHARDS: u32 = 64;
const COPIES: u64 = 3;
const RUNS: usize = 5000;

fn teach(board: &mut Board, now: Instant) {
    for node in 1..=NODES {
        board.begin(NodeId(node), now, false);
        let response = Duration::from_micros(1000 + node * 100);
        board.answered(NodeId(node), now, Sample { response, queued_us: 100, service_us: 500 });
    }
}

/// Runs it often and prints the median time of one run.
fn measure<T>(name: &str, mut run: impl FnMut() -> T) {
    let mut took: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let began = Instant::now();
            black_box(run());
            began.elapsed()
        })
        .collect();
    took.sort();
    println!("{name}: median {:?}, p95 {:?}", took[RUNS / 2], took[RUNS * 95 / 100]);
}

fn main() {
    let (state, collection) = test_state(NODES, SHARDS, COPIES);
    let now = Instant::now();
    let stats = NodeStats::default();
    teach(&mut stats.lock(), now);
    let plan = |now: Instant| {
        let options = PlanOptions {
            consistency: Consistency::Eventual,
            prefer_copy: None,
            zone: Some("default"),
            random: 7,
            now,
        };
        let mut board = stats.lock();
        let plans = plan_read(&state, collection, &options, &board);
        drift_unchosen(&plans, &mut board, now);
        plans
    };
    measure("plan 64 shards x 3 copies on 12 nodes", || plan(now));

    let session = Session::default();
    let rules = Rules {
        stats: &stats,
        consistency: Consistency::Eventual,
        session: &session,
        queries: 1,
        deadline: now + Duration::from_secs(3600),
    };
    measure("decide a scatter over 64 shards", || {
        let (mut gather, calls) = Gather::start(rules, &plan, now);
        for (node, targets) in calls {
            for target in targets {
                black_box(gather.next_wake());
                let outcome = Ok(vec![ShardAnswer::default()]);
                let reply = ShardReply { shard: target.shard, outcome, queued_us: 100, service_us: 500 };
                gather.on_reply(node, reply, now + Duration::from_millis(1));
            }
        }
        gather.finish()
    });
}
