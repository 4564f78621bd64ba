//! `susui shard digest`: whether a shard's copies hold the same.

use super::ShardName;
use crate::cli::Global;
use crate::error::Error;
use crate::output::{row, table};
use crate::wire::cluster::{CopyDigest, ShardDigest};

/// Runs the verb.
pub(super) async fn run(global: &Global, shard: &ShardName) -> Result<(), Error> {
    let digest: ShardDigest = shard.post(&global.client()?, "digest", &serde_json::json!({})).await?;
    global.output().result(&digest, || text(&digest));
    match verdict(&digest) {
        None => Ok(()),
        Some(finding) => Err(Error::CheckFailed(format!("{shard}: {finding}"))),
    }
}

fn text(digest: &ShardDigest) -> String {
    let mut rows = vec![row(["COPY", "NODE", "APPLIED", "DOCUMENTS", "CHUNKS", "CONTENTS", "INDEX", "LOG"])];
    for copy in &digest.copies {
        let mut cells = vec![copy.copy.to_string(), copy.node.to_string()];
        match &copy.error {
            Some(error) => cells.push(format!("no digest: {error}")),
            None => cells.extend([
                copy.applied.to_string(),
                copy.document_count.to_string(),
                copy.chunk_count.to_string(),
                copy.documents.clone(),
                copy.index_membership.clone(),
                copy.log.clone(),
            ]),
        }
        rows.push(cells);
    }
    let verdict = verdict(digest).unwrap_or_else(|| "all copies are equal".into());
    format!("{}\n{verdict}", table(&rows))
}

/// What speaks against the copies being equal; `None` where nothing does.
fn verdict(digest: &ShardDigest) -> Option<String> {
    let silent = digest.copies.iter().filter(|copy| copy.error.is_some()).count();
    if digest.copies.is_empty() || silent > 0 {
        return Some(format!("{silent} of {} copies gave no digest", digest.copies.len()));
    }
    let same = |a: &CopyDigest, b: &CopyDigest| {
        let logs_comparable = a.log_from == b.log_from;
        (&a.documents, &a.index_membership, a.document_count, a.chunk_count)
            == (&b.documents, &b.index_membership, b.document_count, b.chunk_count)
            && (!logs_comparable || a.log == b.log)
    };
    let first = &digest.copies[0];
    if digest.copies.iter().any(|copy| copy.applied != first.applied) {
        return Some("the copies stand at different positions: repeat when writes rest".into());
    }
    if !digest.copies.iter().all(|copy| same(copy, first)) {
        return Some("the copies DIFFER at the same position: keep the data directories and report this".into());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn equal_different_behind_and_silent_are_told_apart() {
        let copy = |copy: u64, applied: u64, documents: &str, log: &str, log_from: u64| {
            json!({"copy": copy, "node": copy, "in_sync": true, "applied": applied, "documents": documents, "index_membership": "0",
                "log": log, "log_from": log_from, "document_count": 1, "chunk_count": 1})
        };
        let mut silent = copy(2, 0, "", "", 0);
        silent["error"] = json!("node 2 is unreachable");
        let cases = [
            (json!([copy(1, 5, "a", "l", 3), copy(2, 5, "a", "l", 3)]), None),
            (json!([copy(1, 5, "a", "l", 3), copy(2, 5, "b", "l", 3)]), Some("DIFFER")),
            (json!([copy(1, 5, "a", "l", 3), copy(2, 5, "a", "m", 3)]), Some("DIFFER")),
            // Logs that begin at different entries have different digests by right.
            (json!([copy(1, 5, "a", "l", 3), copy(2, 5, "a", "m", 4)]), None),
            (json!([copy(1, 5, "a", "l", 3), copy(2, 4, "b", "l", 3)]), Some("different positions")),
            (json!([copy(1, 5, "a", "l", 3), silent]), Some("1 of 2 copies")),
            (json!([]), Some("0 of 0")),
        ];
        for (copies, expected) in cases {
            let digest = serde_json::from_value(json!({"shard": "1/0", "agree": false, "copies": copies}))
                .expect("the API's shape");
            let found = verdict(&digest);
            assert_eq!(found.is_some(), expected.is_some(), "{found:?}");
            assert!(expected.is_none_or(|word| found.as_ref().is_some_and(|found| found.contains(word))), "{found:?}");
        }
    }
}
