//! The second tier of the retrieval cache: results in Redis, as bytes. The byte format is pinned by a test; what does not decode is a
//! miss.

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster_config::ids::{CopyId, Lineage, ShardId};
use cluster_config::search::CopyPosition;
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::key::CacheKey;
use super::metrics::{Kind, Tier};
use super::redis::SharedCache;
use super::{CacheTier, CachedResult};
use crate::retrieve::{Hit, ShardCounts, Work};

/// Results that all coordinators see.
pub struct SharedResults(pub SharedCache);

impl CacheTier for SharedResults {
    fn tier(&self) -> Tier {
        Tier::Redis
    }

    fn get<'a>(&'a self, key: &'a CacheKey) -> BoxFuture<'a, Option<Arc<CachedResult>>> {
        async move { decode(&self.0.get(Kind::Retrieval, key).await?).map(Arc::new) }.boxed()
    }

    fn put<'a>(&'a self, key: &'a CacheKey, result: Arc<CachedResult>) -> BoxFuture<'a, ()> {
        if let Some(payload) = encode(&result) {
            self.0.put(Kind::Retrieval, key, &payload);
        }
        futures::future::ready(()).boxed()
    }

    fn remove<'a>(&'a self, key: &'a CacheKey) -> BoxFuture<'a, ()> {
        self.0.remove(Kind::Retrieval, key);
        futures::future::ready(()).boxed()
    }
}

/// A result as stored. A change of any field raises the mark in `redis/frame`.
#[derive(Serialize, Deserialize)]
struct StoredResult {
    hits: Vec<StoredHit>,
    /// total, ok, failed, timed out.
    shards: [u32; 4],
    /// codes scanned, codes in all, rows compared exactly.
    work: [u64; 3],
    positions: Vec<StoredPosition>,
}

#[derive(Serialize, Deserialize)]
struct StoredHit {
    chunk_id: String,
    document_id: String,
    score: f32,
    title: Option<String>,
    text: Option<String>,
    span: Option<(u64, u64)>,
    metadata_json: Option<String>,
    vector: Option<Vec<f32>>,
}

#[derive(Serialize, Deserialize)]
struct StoredPosition {
    shard: ShardId,
    copy: u64,
    lineage: u64,
    term: u64,
    applied: u64,
    generation: u64,
}

/// `None` where a value cannot be written, which plain data can.
fn encode(result: &CachedResult) -> Option<Vec<u8>> {
    let hit = |hit: &Hit| StoredHit {
        chunk_id: hit.chunk_id.clone(),
        document_id: hit.document_id.clone(),
        score: hit.score,
        title: hit.title.clone(),
        text: hit.text.clone(),
        span: hit.span.as_ref().map(|span| (span.start, span.end)),
        metadata_json: hit.metadata.as_ref().map(ToString::to_string),
        vector: hit.vector.clone(),
    };
    let position = |(shard, at): (&ShardId, &CopyPosition)| StoredPosition {
        shard: *shard,
        copy: at.copy.0,
        lineage: at.lineage.0,
        term: at.term.0,
        applied: at.applied.0,
        generation: at.generation,
    };
    let (shards, work) = (&result.shards, &result.work);
    let stored = StoredResult {
        hits: result.hits.iter().map(hit).collect(),
        shards: [shards.total, shards.ok, shards.failed, shards.timed_out],
        work: [work.codes_scanned, work.codes_total, work.rows_exact],
        positions: result.positions.iter().map(position).collect(),
    };
    postcard::to_allocvec(&stored).ok()
}

fn decode(bytes: &[u8]) -> Option<CachedResult> {
    let stored: StoredResult = postcard::from_bytes(bytes).ok()?;
    let hit = |hit: StoredHit| {
        Some(Hit {
            chunk_id: hit.chunk_id,
            document_id: hit.document_id,
            score: hit.score,
            title: hit.title,
            text: hit.text,
            span: hit.span.map(|(start, end)| start..end),
            metadata: hit.metadata_json.map(|json| serde_json::from_str(&json)).transpose().ok()?,
            vector: hit.vector,
        })
    };
    let position = |at: StoredPosition| {
        let position = CopyPosition {
            shard: Some(at.shard),
            copy: CopyId(at.copy),
            lineage: Lineage(at.lineage),
            term: PrimaryTerm(at.term),
            applied: SeqNo(at.applied),
            generation: at.generation,
            staleness_ms: 0,
        };
        (at.shard, position)
    };
    let ([total, ok, failed, timed_out], [codes_scanned, codes_total, rows_exact]) = (stored.shards, stored.work);
    Some(CachedResult {
        hits: Arc::new(stored.hits.into_iter().map(hit).collect::<Option<_>>()?),
        shards: ShardCounts { total, ok, failed, timed_out },
        work: Work { codes_scanned, codes_total, rows_exact },
        positions: Arc::new(stored.positions.into_iter().map(position).collect::<BTreeMap<_, _>>()),
    })
}

#[cfg(test)]
mod tests {
    use cluster_config::ids::CollectionId;
    use proptest::prelude::*;
    use serde_json::json;
    use sha2::{Digest, Sha256};

    use super::*;

    fn result() -> CachedResult {
        let shard = ShardId { collection: CollectionId(7), index: 1 };
        let position = CopyPosition {
            shard: Some(shard),
            copy: CopyId(3),
            lineage: Lineage(1),
            term: PrimaryTerm(2),
            applied: SeqNo(300),
            generation: 4,
            staleness_ms: 0,
        };
        let full = Hit {
            chunk_id: "d#0".into(),
            document_id: "d".into(),
            score: 0.5,
            title: Some("t".into()),
            text: Some("x\u{e9}".into()),
            span: Some(3..6),
            metadata: Some(json!({"year": 2020, "tags": ["a", 1.5, null]})),
            vector: Some(vec![1.0, -0.25]),
        };
        let bare =
            Hit { title: None, text: None, span: None, metadata: None, vector: None, score: f32::MIN, ..full.clone() };
        CachedResult {
            hits: Arc::new(vec![full, bare]),
            shards: ShardCounts { total: 1, ok: 1, failed: 0, timed_out: 0 },
            work: Work { codes_scanned: 10, codes_total: 20, rows_exact: 30 },
            positions: Arc::new(BTreeMap::from([(shard, position)])),
        }
    }

    #[test]
    fn a_result_comes_back_as_it_was_and_its_bytes_are_pinned() {
        let result = result();
        let bytes = encode(&result).expect("encodes");
        let back = decode(&bytes).expect("decodes");
        assert_eq!((&back.hits, back.shards, back.work), (&result.hits, result.shards, result.work));
        assert_eq!(back.positions, result.positions);
        let digest: String = Sha256::digest(&bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, "ec7bbd3856fb7568", "another version reads these bytes: raise the mark in redis/frame");
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_a_miss(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
            let _ = decode(&bytes);
            let whole = encode(&result()).expect("encodes");
            prop_assert!(decode(&whole[..cut.min(whole.len() - 1)]).is_none());
        }
    }
}
