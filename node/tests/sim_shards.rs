//! Three copies on real disks: RocksDB below, the replication tasks above, only the wire in memory. What is acknowledged must be on
//! every copy, byte for byte, through a failover, a lost process and a return, while the log is purged and the role handed around.

mod sim_support;

use std::sync::Arc;

use cluster_config::collection::CollectionSpec;
use cluster_config::ids::{CopyId, DocumentKey, Lineage, OperationId};
use cluster_config::operation::{Chunk, Operation};
use futures::future::join_all;
use half::f16;
use node::replication::storage::CopyStorage;
use node::replication::{CopyHandle, ReplicationError, Retention};
use node::shard::{Shard, ShardOptions, StorageResources};
use sim_support::cluster::{Cluster, PATIENCE, until};
use sim_support::register::SHARD;
use tempfile::TempDir;
use tokio::time::Instant;

const DIM: usize = 16;

struct Place {
    dir: TempDir,
    resources: Arc<StorageResources>,
}

impl Place {
    fn open(&self, copy: u64) -> Shard {
        let options = ShardOptions {
            dir: self.dir.path().join(format!("copy-{copy}")),
            cluster_id: "test".into(),
            shard: SHARD,
            copy: CopyId(copy),
            lineage: Lineage(0),
            spec: CollectionSpec::new("test", DIM as u32),
            may_create: true,
            resources: Arc::clone(&self.resources),
        };
        Shard::open(options).expect("opens")
    }
}

fn put(number: usize) -> Operation {
    let angle = number as f32;
    let length = (DIM as f32).sqrt();
    let value = |at: usize| f16::from_f32(if (angle + at as f32).sin() < 0.0 { -1.0 } else { 1.0 } / length);
    let chunk = Chunk {
        ordinal: 0,
        text: format!("text of {number}"),
        metadata_json: "{}".into(),
        span: 0..10,
        vector: (0..DIM).flat_map(|at| value(at).to_le_bytes()).collect(),
    };
    let key = DocumentKey::new(format!("d{number}")).expect("valid");
    Operation::PutDocument { key, title: String::new(), chunks: vec![chunk] }
}

/// Writes documents, many at a time; each acknowledgement must be true.
async fn write(handle: &CopyHandle, numbers: std::ops::Range<usize>) -> f64 {
    let (began, count) = (Instant::now(), numbers.len());
    let writes = numbers.map(|number| {
        let id = OperationId(number as u128 + 1);
        async move { handle.write(id, vec![put(number)], Instant::now() + PATIENCE).await.expect("acknowledged") }
    });
    join_all(writes).await;
    count as f64 / began.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purged_log_and_roles_handed_around_lose_nothing() {
    let place = Place {
        dir: tempfile::tempdir().expect("temp dir"),
        resources: Arc::new(StorageResources::new(32 << 20, 16 << 20)),
    };
    // About 400 entries of 160 bytes, in pieces of about ten.
    let retention = Retention { bytes_min: 20_000, bytes_max: 100_000, ..Retention::default() };
    let disks = (1..=3).map(|copy| place.open(copy)).collect();
    let cluster = Cluster::start_with(disks, 3, 30_000, retention).await;
    let began = Instant::now();
    let handing_around = {
        let cluster = Arc::clone(&cluster);
        async move {
            let mut pauses = Vec::new();
            for to in [2, 3, 1, 2, 3] {
                let from = cluster.group().primary_copy().expect("granted").0;
                until("the primary is at work", || cluster.copy(from).is_primary()).await;
                let asked = Instant::now();
                cluster.copy(from).hand_off(CopyId(to), Instant::now() + PATIENCE).await.expect("handed off");
                until("the next one is at work", || cluster.copy(to).is_primary()).await;
                pauses.push(asked.elapsed().as_millis());
            }
            pauses
        }
    };
    let writers = (0..40).map(|writer| {
        let cluster = Arc::clone(&cluster);
        async move {
            for number in (writer..1000).step_by(40) {
                let id = OperationId(number as u128 + 1);
                loop {
                    let primary = cluster.group().primary_copy().expect("granted").0;
                    match cluster.copy(primary).write(id, vec![put(number)], Instant::now() + PATIENCE).await {
                        Ok(_) => break,
                        Err(ReplicationError::NotPrimary { .. }) => tokio::task::yield_now().await,
                        Err(error) => panic!("write {number}: {error}"),
                    }
                }
            }
        }
    });
    let (pauses, _) = tokio::join!(handing_around, join_all(writers));
    println!("roles passed on in {pauses:?} ms under load; 1000 writes in {} ms", began.elapsed().as_millis());
    until("every copy has purged", || cluster.disks().iter().all(|shard| purged(shard) > 500)).await;
    let asked = Instant::now();
    let primary = cluster.copy(3);
    let reads = (0..1000).map(|_| primary.strong_read(Instant::now() + PATIENCE));
    let last = join_all(reads).await.into_iter().map(|read| read.expect("served")).max();
    println!("1000 strong reads at a time in {} ms", asked.elapsed().as_millis());
    assert!(last.is_some_and(|last| last == primary.report().applied));

    // The log begins late, and the copy comes back all the same.
    cluster.close(1).await;
    cluster.expire(1);
    write(&cluster.copy(3), 1000..1010).await;
    cluster.open(1, Arc::new(place.open(1))).await;
    write(&cluster.copy(3), 1010..1020).await;
    let last = cluster.copy(3).report().applied;
    for copy in 1..=3 {
        cluster.copy(copy).wait_applied(last, Instant::now() + PATIENCE).await.expect("applied");
    }
    for shard in cluster.disks() {
        let digest = shard.digest().expect("reads");
        assert_eq!(digest.document_count, 1020, "every acknowledged document, once");
        assert_eq!(digest.documents, cluster.disk(3).digest().expect("reads").documents, "copies are equal");
    }
}

fn purged(shard: &Shard) -> u64 {
    shard.state().expect("state").purged.seqno.0
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_on_disk_agree_through_failover_loss_and_return() {
    let place = Place {
        dir: tempfile::tempdir().expect("temp dir"),
        resources: Arc::new(StorageResources::new(32 << 20, 16 << 20)),
    };
    let cluster = Cluster::start((1..=3).map(|copy| place.open(copy)).collect(), 30_000).await;
    let rate = write(&cluster.copy(1), 0..400).await;
    println!("{rate:.0} writes/s, 400 at a time, three copies with fsync each on one disk");

    // The role passes on; the old primary's process goes without a word.
    cluster.grant(2, &[CopyId(1)]);
    until("copy 2 is primary", || cluster.copy(2).is_primary()).await;
    cluster.close(1).await;
    write(&cluster.copy(2), 400..600).await;
    let again =
        cluster.copy(2).write(OperationId(1), vec![put(0)], Instant::now() + PATIENCE).await.expect("acknowledged");
    assert!(again.deduplicated, "the window of applied operations is on disk");

    cluster.open(1, Arc::new(place.open(1))).await;
    until("copy 1 is in sync again", || cluster.group().in_sync.len() == 3).await;
    write(&cluster.copy(2), 600..650).await;
    let last = cluster.copy(2).report().applied;
    for copy in 1..=3 {
        cluster.copy(copy).wait_applied(last, Instant::now() + PATIENCE).await.expect("applied");
    }
    let digests: Vec<_> = cluster.disks().iter().map(|shard| shard.digest().expect("reads")).collect();
    for digest in &digests {
        assert_eq!(digest.document_count, 650, "every acknowledged document, once");
        assert_eq!((digest.documents, digest.log), (digests[0].documents, digests[0].log), "copies are equal");
    }
}
