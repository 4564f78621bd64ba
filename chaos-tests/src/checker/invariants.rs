//! No invariant was broken that nodes check after each step (`SUSUI_CHECK=1`): those of replication and those of the metadata. What they
//! write then is all that shows it, for they live on, without the copy or without their vote.

use std::borrow::Cow;

use super::Finding;

/// In the line of a copy whose replication core is not as it must be.
const REPLICATION: &str = "replication invariant broken";
/// In the line of a voter that stops because the state is not as it must be after a command.
const METADATA: &str = "metadata invariant broken";

/// Looks through the logs of nodes; counts their lines.
pub fn check<'a>(logs: impl IntoIterator<Item = (usize, Cow<'a, str>)>) -> Finding {
    let mut finding = Finding { promise: "no node broke an invariant it checks", checked: 0, breaches: Vec::new() };
    for (node, log) in logs {
        for line in log.lines() {
            finding.checked += 1;
            if line.contains(REPLICATION) || line.contains(METADATA) {
                finding.breaches.push(format!("node {node}: {line}"));
            }
        }
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a node writes them.
    const LOG: &str = r#"2026-11-26T08:00:00.000000Z  INFO node::startup: ready rpc=127.0.0.1:7001
2026-11-26T08:00:01.000000Z ERROR node::replication::copy: replication invariant broken shard=1/0 copy=2 problem="applied 9 beyond what was asked, 8"
2026-11-26T08:00:02.000000Z ERROR openraft::core::sm::worker: when Write Apply(LogId { committed_leader_id: 1, index: 7 }): std::io::error::Error: metadata invariant broken after shard 1/0: retire copy 2: copy 2 stands in two registers while execute state machine command
2026-11-26T08:00:03.000000Z ERROR openraft::core::sm::worker: when Write Apply(LogId { committed_leader_id: 1, index: 8 }): std::io::error::Error: IO error: No space left on device: While appending to file: 000009.log while execute state machine command
2026-11-26T08:00:04.000000Z  WARN node::replication::copy: copy 3 was removed after 2000 ms
"#;

    #[test]
    fn both_kinds_are_seen_and_a_full_disk_is_neither() {
        let finding = check([(1, "".into()), (2, LOG.into())]);
        assert_eq!((finding.checked, finding.breaches.len()), (5, 2), "{finding}");
        assert!(finding.breaches[0].starts_with("node 2: ") && finding.breaches[0].contains("applied 9 beyond"));
        assert!(finding.breaches[1].contains("stands in two registers"));
    }

    #[test]
    fn a_silent_log_tests_nothing() {
        assert!(!check([(1, "".into())]).is_kept());
    }
}
