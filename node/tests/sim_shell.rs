//! Three copies as they really run, tasks and pools included, over a transport and disks in memory.

mod sim_support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, NodeId, OperationId};
use cluster_config::limits::WRITE_QUEUE_MAX;
use cluster_config::operation::Operation;
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use futures::future::join_all;
use node::replication::storage::StorageError;
use node::replication::{ReplicationError, Retention};
use sim_support::cluster::{Cluster, PATIENCE, begin_write, until, write};
use sim_support::disk::SimDisk;
use sim_support::register::SHARD;
use tokio::time::Instant;

async fn start(copies: u64, ack_timeout_ms: u64) -> Arc<Cluster<SimDisk>> {
    let disks = (1..=copies).map(|copy| SimDisk::new(CopyId(copy), SHARD)).collect();
    Cluster::start(disks, ack_timeout_ms).await
}

fn copies_are_equal(cluster: &Cluster<SimDisk>) -> bool {
    let disks = cluster.disks();
    let first = disks[0].history();
    disks.iter().all(|disk| disk.history() == first && disk.applied() == first.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writes_reach_every_copy_in_one_order() {
    let cluster = start(3, 30_000).await;
    let outcomes = join_all((1..=200).map(|id| write(cluster.copy(1), id))).await;
    let seqnos: BTreeSet<SeqNo> = outcomes
        .into_iter()
        .map(|outcome| {
            let outcome = outcome.expect("acknowledged");
            assert_eq!(outcome.copies_acked, 3);
            assert!(outcome.position.applied >= outcome.seqno, "visible on the primary");
            outcome.seqno
        })
        .collect();
    assert_eq!(seqnos.len(), 200, "each write has its own position");
    let last = *seqnos.last().expect("not empty");
    for copy in 1..=3 {
        cluster.copy(copy).wait_applied(last, Instant::now() + PATIENCE).await.expect("applied everywhere");
        assert_eq!(cluster.copy(copy).report().global_checkpoint, last);
        assert_eq!(cluster.copy(copy).confirm(PrimaryTerm(1)).await, PrimaryTerm(1));
    }
    assert!(copies_are_equal(&cluster));
    let refused = write(cluster.copy(2), 1).await.expect_err("a follower takes no writes");
    assert!(
        matches!(&refused, ReplicationError::NotPrimary { register: Some(group) } if group.version == cluster.group().version)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_arrive_during_an_fsync_share_the_next_one() {
    let cluster = start(3, 30_000).await;
    until("the barrier is applied", || cluster.copy(1).report().applied == SeqNo(1)).await;
    let before = cluster.disk(1).persists.passed();
    cluster.disk(1).persists.shut();
    let writes: Vec<_> = (1..=100).map(|id| begin_write(&cluster, 1, id)).collect();
    until("all are in the log and on the others", || {
        cluster.copy(1).report().last.seqno == SeqNo(101) && cluster.copy(3).report().local_checkpoint == SeqNo(101)
    })
    .await;
    assert_eq!(cluster.copy(1).report().global_checkpoint, SeqNo(1), "nothing is committed without the own disk");
    cluster.disk(1).persists.open();
    for write in writes {
        write.await.expect("joins").expect("acknowledged");
    }
    let fsyncs = cluster.disk(1).persists.passed() - before;
    assert_eq!(fsyncs, 2, "the one under way and one for all the rest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_apply_holds_up_neither_the_log_nor_other_copies() {
    let cluster = start(3, 30_000).await;
    cluster.disk(2).applies.shut();
    let last = write(cluster.copy(1), 1).await.expect("the follower's apply is not waited for").seqno;
    cluster.disk(1).applies.shut();
    let waiting = begin_write(&cluster, 1, 2);
    until("the log goes on everywhere", || {
        (1..=3).all(|copy| cluster.copy(copy).report().global_checkpoint == last.next())
    })
    .await;
    assert!(!waiting.is_finished(), "not acknowledged before it is visible on the primary");
    cluster.disk(1).applies.open();
    cluster.disk(2).applies.open();
    waiting.await.expect("joins").expect("acknowledged");
    until("the follower catches up", || copies_are_equal(&cluster)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_copy_is_removed_and_comes_back_by_itself() {
    let cluster = start(3, 400).await;
    cluster.unreachable.lock().insert(NodeId(3));
    let outcome = write(cluster.copy(1), 1).await.expect("goes on without copy 3");
    assert_eq!(outcome.copies_acked, 2);
    assert!(!cluster.group().in_sync.contains(&CopyId(3)), "metadata agreed to the removal before the acknowledgement");
    for id in 2..=50 {
        write(cluster.copy(1), id).await.expect("acknowledged");
    }
    cluster.unreachable.lock().clear();
    until("copy 3 is in sync again", || cluster.group().in_sync.len() == 3).await;
    let outcome = write(cluster.copy(1), 51).await.expect("acknowledged");
    assert_eq!(outcome.copies_acked, 3);
    until("all are equal", || copies_are_equal(&cluster)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_at_the_next_primary_finds_the_first_attempt() {
    let cluster = start(3, 30_000).await;
    let first = write(cluster.copy(1), 7).await.expect("acknowledged");
    // Copy 1 does not answer its client any more: its write reaches the others, and the role goes to copy 2.
    cluster.disk(1).persists.shut();
    let interrupted = begin_write(&cluster, 1, 8);
    until("it is on copy 2", || cluster.copy(2).report().local_checkpoint == SeqNo(3)).await;
    cluster.grant(2, &[CopyId(1)]);
    let error = interrupted.await.expect("joins").expect_err("the role is lost");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    until("copy 2 is primary", || cluster.copy(2).is_primary()).await;
    let retried = write(cluster.copy(2), 8).await.expect("acknowledged");
    assert_eq!((retried.seqno, retried.deduplicated), (SeqNo(3), true));
    let again = write(cluster.copy(2), 7).await.expect("acknowledged");
    assert_eq!((again.seqno, again.deduplicated), (first.seqno, true));
    cluster.disk(1).persists.open();
    until("copy 1 follows and is in sync again", || cluster.group().in_sync.len() == 3 && copies_are_equal(&cluster))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_whose_disk_fails_gives_the_role_back() {
    let cluster = start(3, 30_000).await;
    write(cluster.copy(1), 1).await.expect("acknowledged");
    cluster.disk(1).fail_with(Some(StorageError::Io("simulated".into())));
    let error = write(cluster.copy(1), 2).await.expect_err("not durable here");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "the outcome is unknown");
    until("metadata relieved it", || cluster.group().primary.is_none()).await;
    assert!(!cluster.group().in_sync.contains(&CopyId(1)));
    assert!(cluster.copy(1).report().poisoned.is_some());
    cluster.grant(3, &[]);
    until("copy 3 is primary", || cluster.copy(3).is_primary()).await;
    write(cluster.copy(3), 2).await.expect("acknowledged");

    // Reopened by a new process, it catches up from the log.
    let disk = cluster.disk(1);
    cluster.close(1).await;
    disk.fail_with(None);
    cluster.open(1, disk).await;
    until("it is in sync again", || cluster.group().in_sync.len() == 3 && copies_are_equal(&cluster)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_bounded_in_number_and_in_time() {
    let cluster = start(2, 30_000).await;
    cluster.disk(2).persists.shut();
    let soon = Instant::now() + Duration::from_millis(50);
    let late = cluster.copy(1).write(OperationId(0), vec![Operation::Barrier], soon).await;
    assert_eq!(late.expect_err("copy 2 does not answer").kind(), ErrorKind::DeadlineExceeded);
    let writes: Vec<_> = (1..WRITE_QUEUE_MAX as u128).map(|id| begin_write(&cluster, 1, id)).collect();
    until("the queue is full", || cluster.copy(1).report().last.seqno.0 == WRITE_QUEUE_MAX as u64 + 1).await;
    let refused = write(cluster.copy(1), u128::MAX).await.expect_err("full");
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    cluster.disk(2).persists.open();
    for write in writes {
        write.await.expect("joins").expect("acknowledged");
    }
    write(cluster.copy(1), u128::MAX).await.expect("there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_lets_the_writes_under_way_finish() {
    let cluster = start(2, 30_000).await;
    cluster.disk(2).persists.shut();
    let under_way = begin_write(&cluster, 1, 1);
    until("it is in the log", || cluster.copy(1).report().last.seqno == SeqNo(2)).await;
    let copy = cluster.copy(1);
    let closing = tokio::spawn(copy.clone().close());
    let refused = loop {
        // Until the task has seen that it is to close, a write still waits like the first one.
        let attempt = copy.write(OperationId(0), vec![Operation::Barrier], Instant::now() + Duration::from_millis(20));
        match attempt.await.expect_err("copy 2 does not answer") {
            ReplicationError::DeadlineExceeded => {}
            other => break other,
        }
    };
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    cluster.disk(2).persists.open();
    under_way.await.expect("joins").expect("acknowledged");
    closing.await.expect("joins");
    let held = cluster.disk(1).history();
    assert_eq!(held, cluster.disk(2).history()[..held.len()], "what was acknowledged stands on both disks");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strong_read_waits_for_every_copy_that_counts() {
    let cluster = start(3, 400).await;
    let written = write(cluster.copy(1), 1).await.expect("acknowledged").seqno;
    let soon = || Instant::now() + PATIENCE;
    let reads = join_all((0..100).map(|_| async { cluster.copy(1).strong_read(soon()).await.expect("served") })).await;
    assert!(reads.into_iter().all(|seqno| seqno >= written));
    let refused = cluster.copy(2).strong_read(soon()).await.expect_err("no primary");
    assert!(matches!(refused, ReplicationError::NotPrimary { register: Some(_) }));
    // Copy 3 does not answer: only once metadata removed it, nothing can have been acknowledged there.
    cluster.unreachable.lock().insert(NodeId(3));
    let at_once = cluster.copy(1).strong_read(Instant::now() + Duration::from_millis(50)).await;
    assert_eq!(at_once.expect_err("copy 3 may be primary already").kind(), ErrorKind::DeadlineExceeded);
    cluster.copy(1).strong_read(soon()).await.expect("served");
    assert!(!cluster.group().in_sync.contains(&CopyId(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_off_interrupts_no_write() {
    let cluster = start(3, 30_000).await;
    let writers: Vec<_> = (0..8u128)
        .map(|writer| {
            let cluster = Arc::clone(&cluster);
            tokio::spawn(async move {
                let mut refused = 0;
                for number in 0..100 {
                    let id = 1 + writer * 100 + number;
                    loop {
                        let primary = cluster.group().primary_copy().expect("granted").0;
                        match write(cluster.copy(primary), id).await {
                            Ok(outcome) => break assert!(!outcome.deduplicated, "no attempt before was taken"),
                            // Nothing else is allowed: what waited was not taken, what was taken was finished.
                            Err(ReplicationError::NotPrimary { .. }) => refused += 1,
                            Err(error) => panic!("write {id}: {error}"),
                        }
                        tokio::task::yield_now().await;
                    }
                }
                refused
            })
        })
        .collect();
    for to in [2, 3, 1, 3] {
        let from = cluster.group().primary_copy().expect("granted").0;
        until("the primary is at work", || cluster.copy(from).is_primary()).await;
        cluster.copy(from).hand_off(CopyId(to), Instant::now() + PATIENCE).await.expect("handed off");
        assert!(!cluster.copy(from).is_primary());
        assert_eq!(cluster.group().primary_copy(), Some(CopyId(to)));
    }
    for writer in writers {
        writer.await.expect("joins");
    }
    assert_eq!(cluster.group().in_sync.len(), 3, "the old primaries stay in sync");
    until("all are equal", || copies_are_equal(&cluster)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_off_that_fails_takes_the_writes_that_waited() {
    let cluster = start(2, 30_000).await;
    cluster.disk(2).persists.shut();
    let under_way = begin_write(&cluster, 1, 1);
    until("it is in the log", || cluster.copy(1).report().last.seqno == SeqNo(2)).await;
    let copy = cluster.copy(1);
    let handing_off =
        tokio::spawn(async move { copy.hand_off(CopyId(2), Instant::now() + Duration::from_millis(300)).await });
    let error = handing_off.await.expect("joins").expect_err("copy 2 does not come to rest");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(cluster.copy(1).is_primary());
    cluster.disk(2).persists.open();
    under_way.await.expect("joins").expect("acknowledged");
    write(cluster.copy(1), 2).await.expect("acknowledged");
    let error = cluster.copy(2).hand_off(CopyId(1), Instant::now() + PATIENCE).await.expect_err("no primary");
    assert!(matches!(error, ReplicationError::NotPrimary { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_lacks_what_is_purged_comes_back_with_a_snapshot() {
    // An entry takes about a hundred bytes: the log goes in pieces of one and waits for laggards with ten.
    let retention = Retention { bytes_min: 200, bytes_max: 1000, ..Retention::default() };
    let disks = (1..=4).map(|copy| SimDisk::new(CopyId(copy), SHARD)).collect();
    let cluster = Cluster::start_with(disks, 3, 400, retention).await;
    write(cluster.copy(1), 1).await.expect("acknowledged");
    cluster.unreachable.lock().extend([NodeId(3), NodeId(4)]);
    for id in 2..=60 {
        write(cluster.copy(1), id).await.expect("acknowledged");
    }
    until("both that are left have purged", || cluster.disk(1).purged() > 30 && cluster.disk(2).purged() > 30).await;
    assert!(cluster.disk(1).purged() < 61, "the newest stay");
    cluster.unreachable.lock().clear();
    // A voter that fell behind, and a read replica.
    for copy in [3, 4] {
        let lost = cluster.copy(copy);
        until("it knows", || lost.report().needs_snapshot).await;
        assert!(cluster.copy(1).report().needing_snapshot.contains(&CopyId(copy)));
        until("copy 2 has applied what copy 1 has", || cluster.disk(2).applied() == cluster.disk(1).applied()).await;
        let snapshot = cluster.disk(2).snapshot();
        let after = SeqNo(snapshot.len() as u64 + 1);
        lost.pin_log(after, Duration::from_secs(60)).await.expect("pinned");
        until("the primary heard", || cluster.copy(1).report().pinned == Some(after)).await;
        for id in 0..40 {
            write(cluster.copy(1), u128::from(copy) * 100 + id).await.expect("acknowledged");
        }
        assert!(cluster.disk(1).purged() < after.0 as usize, "what follows the snapshot is kept");
        let disk = cluster.disk(copy);
        cluster.close(copy).await;
        assert!(lost.report().needs_snapshot, "it has acknowledged nothing since");
        disk.install(snapshot);
        cluster.open(copy, disk).await;
        until("it goes on from the snapshot", || cluster.copy(copy).report().applied >= after).await;
    }
    until("the voter is in sync again", || cluster.group().in_sync.len() == 3).await;
    until("all are equal", || copies_are_equal(&cluster)).await;
    let again = write(cluster.copy(1), 1).await.expect("acknowledged");
    assert!(again.deduplicated, "the window of operation ids outlives the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_replica_follows_and_holds_up_nothing() {
    let disks = (1..=3).map(|copy| SimDisk::new(CopyId(copy), SHARD)).collect();
    let cluster = Cluster::start_with(disks, 2, 30_000, Retention::default()).await;
    cluster.disk(3).persists.shut();
    let outcome = write(cluster.copy(1), 1).await.expect("not waited for");
    assert_eq!(outcome.copies_acked, 2);
    cluster.copy(1).strong_read(Instant::now() + PATIENCE).await.expect("not asked");
    cluster.disk(3).persists.open();
    cluster.copy(3).wait_applied(outcome.seqno, Instant::now() + PATIENCE).await.expect("a session may read here");
    assert!(cluster.copy(3).position().staleness_ms < PATIENCE.as_millis() as u64);
    assert_eq!(cluster.group().in_sync.len(), 2);
}
