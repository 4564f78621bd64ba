//! Retrieval: from vectors to ranked chunks, over all shards of a collection.
//!
//! [`Retriever::run`] is the part of the query's walk between the embedding and the prompt: plan, cache lookup, scatter, merge,
//! fetch, fill. It promises a complete answer or an error that counts the shards; it knows nothing of HTTP or language models.

pub mod documents;
pub mod fetch;
pub mod gather;
pub mod merge;
pub mod plan;
pub mod scatter;
pub mod session;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::collection::Collection;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{ShardId, chunk_id};
use cluster_config::search::{Consistency, CopyPosition, ShardAnswer, ShardQuery};
use futures::FutureExt;
use futures::future::join_all;
use half::f16;
use serde::Serialize;

use self::gather::Gathered;
use self::merge::{MergedHit, answers_to, merge_top_k, sum_work};
use self::plan::{PlanOptions, PreferCopy, ShardPlan, drift_unchosen, plan_read};
use self::scatter::Scatter;
use self::session::Session;
use crate::cache::key::CacheKey;
use crate::cache::lookup::Asked;
use crate::cache::positions::Word;
use crate::cache::turn::{Looked, Turn};
use crate::cache::{CachedResult, RetrievalCache};
use crate::cluster::client::NodeClient;
use crate::cluster::stats::NodeStats;
use crate::cluster::view::ClusterView;
use crate::error::{Error, Result};
use crate::telemetry::Metrics;

/// Lookups of one batch under way at a time: Redis answers them together, and what the first learns of the shards' positions
/// serves those after it.
const LOOKUPS_AT_ONCE: usize = 16;

fn keys_of(collection: &Collection, queries: &[ShardQuery], options: &RetrievalOptions) -> Vec<CacheKey> {
    queries.iter().map(|query| CacheKey::of_search(collection, query, options)).collect()
}

/// How many shards a result rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ShardCounts {
    /// Shards of the collection.
    pub total: u32,
    /// Shards that answered.
    pub ok: u32,
    /// Shards that gave an error on every copy asked.
    pub failed: u32,
    /// Shards without an answer at the deadline.
    pub timed_out: u32,
}

impl ShardCounts {
    /// Share of shards that answered.
    pub fn coverage(&self) -> f64 {
        if self.total == 0 { 0.0 } else { f64::from(self.ok) / f64::from(self.total) }
    }
}

/// Work done by the shards for one query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Work {
    /// Codes scanned in the indexes.
    pub codes_scanned: u64,
    /// Codes the indexes hold.
    pub codes_total: u64,
    /// Rows compared exactly.
    pub rows_exact: u64,
}

/// What to bring back besides scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Include {
    /// Chunk text, title and span.
    pub text: bool,
    /// Metadata.
    pub metadata: bool,
    /// The stored vector.
    pub vector: bool,
}

impl Include {
    fn needs_fetch(self) -> bool {
        self.text || self.metadata || self.vector
    }
}

/// What holds for all queries of one retrieval.
#[derive(Clone, Debug)]
pub struct RetrievalOptions {
    /// How fresh.
    pub consistency: Consistency,
    /// How long ago a copy that answers an eventual read may have heard from its primary.
    pub max_staleness: Duration,
    /// Positions the caller has seen.
    pub session: Session,
    /// The copy to ask first.
    pub prefer_copy: Option<PreferCopy>,
    /// Least share of shards that must answer, 0..=1.
    pub min_coverage: f64,
    /// What hits carry.
    pub include: Include,
    /// Everything ends here.
    pub deadline: Instant,
}

/// A ranked chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// `{document_id}#{ordinal}`.
    pub chunk_id: String,
    /// Its document.
    pub document_id: String,
    /// Larger is better.
    pub score: f32,
    /// Present if text was wanted.
    pub title: Option<String>,
    /// Present if text was wanted.
    pub text: Option<String>,
    /// Byte range of the chunk in the document's text; present if text was wanted.
    pub span: Option<Range<u64>>,
    /// A JSON object; present if metadata was wanted.
    pub metadata: Option<serde_json::Value>,
    /// Present if wanted.
    pub vector: Option<Vec<f32>>,
}

impl Hit {
    /// The page or slide it begins on, where its document has pages and metadata was wanted.
    pub fn page(&self) -> Option<u32> {
        self.metadata.as_ref()?.get(crate::ingest::PAGE_FIELD)?.as_u64()?.try_into().ok()
    }

    /// The headings it stands under, outermost first, where its document has headings and metadata was wanted.
    pub fn headings(&self) -> Vec<String> {
        let field = self.metadata.as_ref().and_then(|metadata| metadata.get(crate::ingest::HEADINGS_FIELD));
        let headings = field.and_then(serde_json::Value::as_array).map(Vec::as_slice).unwrap_or_default();
        headings.iter().filter_map(|heading| heading.as_str().map(str::to_owned)).collect()
    }
}

/// The result of one query.
#[derive(Clone, Debug)]
pub struct Retrieved {
    /// Best first.
    pub hits: Arc<Vec<Hit>>,
    /// Honest count.
    pub shards: ShardCounts,
    /// What it cost.
    pub work: Work,
    /// Served from the retrieval cache.
    pub cached: bool,
    /// Positions it was computed at.
    pub positions: Arc<BTreeMap<ShardId, CopyPosition>>,
}

/// Milliseconds of each stage of one retrieval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, utoipa::ToSchema)]
pub struct RetrievalTimings {
    /// Looking in the cache, positions call included.
    pub cache_ms: f64,
    /// All shards.
    pub scatter_ms: f64,
    /// Longest wait in a node's search queue.
    pub queued_ms: f64,
    /// Longest computation on a node.
    pub service_ms: f64,
    /// Texts.
    pub fetch_ms: f64,
}

/// All queries of one call.
#[derive(Clone, Debug)]
pub struct RetrievedAll {
    /// One per query, in order.
    pub results: Vec<Retrieved>,
    /// The caller's session, raised by what was read.
    pub session: Session,
    /// Where the time went.
    pub timings: RetrievalTimings,
}

/// Runs retrievals. Shared by all requests.
pub struct Retriever {
    client: Arc<dyn NodeClient>,
    view: Arc<ClusterView>,
    stats: Arc<NodeStats>,
    cache: Option<Arc<RetrievalCache>>,
    metrics: Arc<Metrics>,
    zone: Option<String>,
}

impl Retriever {
    /// `cache` is `None` where caching is switched off; `zone` is where this coordinator stands, if it was told.
    pub fn new(
        client: Arc<dyn NodeClient>,
        view: Arc<ClusterView>,
        stats: Arc<NodeStats>,
        cache: Option<Arc<RetrievalCache>>,
        metrics: Arc<Metrics>,
        zone: Option<String>,
    ) -> Self {
        Self { client, view, stats, cache, metrics, zone }
    }

    /// Answers `queries` over `collection`: plan > cache > scatter > merge > fetch > fill.
    ///
    /// Queries must have been validated against the collection. Errors: `Coverage` when fewer shards answered than
    /// `min_coverage` asks; `Node` when texts could not be fetched.
    /// Cancel: dropping it cancels the searches on the nodes and leaves nothing behind.
    pub async fn run(
        &self,
        collection: &Collection,
        queries: Vec<ShardQuery>,
        options: &RetrievalOptions,
    ) -> Result<RetrievedAll> {
        let mut timings = RetrievalTimings::default();
        let mut session = options.session.clone();
        let began = Instant::now();
        let keys = self.cache.as_ref().map(|_| keys_of(collection, &queries, options));
        let (mut results, _turn) = match &keys {
            // A strong read is confirmed by the copies each time.
            Some(keys) if options.consistency != Consistency::Strong => self.look_up(collection, keys, options).await,
            _ => (vec![None; queries.len()], None),
        };
        timings.cache_ms = millis(began.elapsed());
        let missing: Vec<usize> = (0..queries.len()).filter(|position| results[*position].is_none()).collect();

        if !missing.is_empty() {
            let asked: Vec<ShardQuery> = missing.iter().map(|position| queries[*position].clone()).collect();
            let computed = self.compute(collection, Arc::new(asked), options, &mut timings).await?;
            for (position, retrieved) in missing.into_iter().zip(computed) {
                let is_whole = retrieved.shards.ok == retrieved.shards.total;
                if let (Some(cache), Some(keys), true) = (&self.cache, &keys, is_whole) {
                    cache.fill(&keys[position], CachedResult::of(&retrieved)).await;
                }
                results[position] = Some(retrieved);
            }
        }
        let results: Vec<Retrieved> = results.into_iter().flatten().collect();
        for (shard, position) in results.iter().flat_map(|result| result.positions.iter()) {
            session.observe(*shard, position);
        }
        let state = self.view.state();
        // Shards of deleted collections only: one that is not known here yet may have been written through another coordinator.
        session.retain(|shard| state.shards.contains_key(&shard) || shard.collection.0 >= state.next_collection);
        Ok(RetrievedAll { results, session, timings })
    }

    /// Results that the cache holds and that are still valid. The turns, while held, let equal queries wait for this one.
    async fn look_up(
        &self,
        collection: &Collection,
        keys: &[CacheKey],
        options: &RetrievalOptions,
    ) -> (Vec<Option<Retrieved>>, Option<Turn>) {
        let Some(cache) = &self.cache else { return (vec![None; keys.len()], None) };
        let (client, view) = (self.client.as_ref(), self.view.as_ref());
        let asked = |key| Asked { client, view, collection: collection.id, key, options };
        // A batch is not made to wait for others: two batches in opposite order would wait for each other.
        if let [key] = keys {
            return match cache.look_up_or_begin(&asked(key)).await {
                Looked::Found(found) => (vec![Some(found)], None),
                Looked::Missing(turn) => (vec![None], Some(turn)),
            };
        }
        let mut found = Vec::with_capacity(keys.len());
        for keys in keys.chunks(LOOKUPS_AT_ONCE) {
            let asked: Vec<Asked<'_>> = keys.iter().map(asked).collect();
            found.extend(join_all(asked.iter().map(|asked| cache.look_up(asked).boxed())).await);
        }
        (found, None)
    }

    async fn compute(
        &self,
        collection: &Collection,
        queries: Arc<Vec<ShardQuery>>,
        options: &RetrievalOptions,
        timings: &mut RetrievalTimings,
    ) -> Result<Vec<Retrieved>> {
        let began = Instant::now();
        let gathered = self.gather(collection, Arc::clone(&queries), options).await;
        timings.scatter_ms = millis(began.elapsed());
        for answered in gathered.answered.values() {
            timings.queued_ms = timings.queued_ms.max(answered.queued_us as f64 / 1000.0);
            timings.service_ms = timings.service_ms.max(answered.service_us as f64 / 1000.0);
        }
        let counts = count(&gathered);
        self.metrics.shards_answered(&counts, gathered.retries, gathered.laps);
        check_coverage(&gathered, counts, options.min_coverage)?;

        let positions: BTreeMap<ShardId, CopyPosition> = gathered
            .answered
            .iter()
            .filter_map(|(shard, answered)| answered.answers.first().map(|answer| (*shard, answer.position)))
            .collect();
        if let Some(cache) = &self.cache {
            let state = self.view.state();
            for (shard, position) in &positions {
                let is_primary =
                    state.shards.get(shard).is_some_and(|group| group.primary_copy() == Some(position.copy));
                let word = if is_primary { Word::of(position, began) } else { None };
                cache.positions.note(*shard, position, word);
            }
        }
        let answered_by = gathered.answered.iter().map(|(shard, ok)| (*shard, (ok.node, ok.target))).collect();
        let answers: BTreeMap<ShardId, Vec<ShardAnswer>> =
            gathered.answered.into_iter().map(|(shard, answered)| (shard, answered.answers)).collect();
        let merged: Vec<Vec<MergedHit>> = queries
            .iter()
            .enumerate()
            .map(|(number, query)| merge_top_k(answers_to(&answers, number), query.fetch_k as usize))
            .collect();

        let began = Instant::now();
        let chunks = if options.include.needs_fetch() {
            let all: Vec<MergedHit> = merged.iter().flatten().cloned().collect();
            let read = fetch::FetchHits {
                client: self.client.as_ref(),
                answered_by: &answered_by,
                positions: &positions,
                others: &|| self.plan(collection, Consistency::Session, None, Instant::now()),
                with_vectors: options.include.vector,
                deadline: options.deadline,
            };
            Some(read.run(&all).await?)
        } else {
            None
        };
        timings.fetch_ms = millis(began.elapsed());

        let positions = Arc::new(positions);
        let results = merged.into_iter().enumerate().map(|(number, hits)| {
            let (codes_scanned, codes_total, rows_exact) =
                sum_work(answers_to(&answers, number).map(|(_, answer)| answer));
            let hits = hits.into_iter().filter_map(|merged| to_hit(merged, chunks.as_ref(), options.include)).collect();
            Retrieved {
                hits: Arc::new(hits),
                shards: counts,
                work: Work { codes_scanned, codes_total, rows_exact },
                cached: false,
                positions: Arc::clone(&positions),
            }
        });
        Ok(results.collect())
    }

    /// Asks all shards.
    async fn gather(
        &self,
        collection: &Collection,
        queries: Arc<Vec<ShardQuery>>,
        options: &RetrievalOptions,
    ) -> Gathered {
        let scatter = Scatter {
            client: self.client.as_ref(),
            view: &self.view,
            stats: &self.stats,
            queries,
            consistency: options.consistency,
            session: &options.session,
            max_staleness: options.max_staleness,
            deadline: options.deadline,
        };
        let plan = |now| self.plan(collection, options.consistency, options.prefer_copy, now);
        scatter.run(&plan).await
    }

    /// The copies of each shard in the order of asking, by what is known now.
    fn plan(
        &self,
        collection: &Collection,
        consistency: Consistency,
        prefer_copy: Option<PreferCopy>,
        now: Instant,
    ) -> Vec<ShardPlan> {
        let state = self.view.state();
        let options = PlanOptions { consistency, prefer_copy, zone: self.zone.as_deref(), random: rand::random(), now };
        let mut board = self.stats.lock();
        board.retain(&state);
        let plans = plan_read(&state, collection.id, &options, &board);
        drift_unchosen(&plans, &mut board, now);
        plans
    }
}

fn count(gathered: &Gathered) -> ShardCounts {
    let timed_out = gathered.failed.values().filter(|failure| failure.timed_out).count() as u32;
    let failed = gathered.failed.len() as u32 - timed_out;
    let ok = gathered.answered.len() as u32;
    ShardCounts { total: ok + failed + timed_out, ok, failed, timed_out }
}

/// An incomplete answer is an error unless the caller said how much is enough.
fn check_coverage(gathered: &Gathered, counts: ShardCounts, min_coverage: f64) -> Result<()> {
    if counts.total == 0 {
        let text = "the collection has no shards yet";
        return Err(Error::refused(ErrorKind::Unavailable, text, "it was just created; retry"));
    }
    let Some((shard, failure)) = gathered.failed.iter().next() else { return Ok(()) };
    // A void token is the caller's to act on, whatever the coverage.
    if let Some(void) = gathered.failed.values().find(|failure| failure.error.kind == ErrorKind::TokenVoid) {
        return Err(void.error.clone().into());
    }
    if counts.ok > 0 && counts.coverage() >= min_coverage {
        return Ok(());
    }
    let kind = match failure.error.kind {
        // What a node thinks of the request's routing is not the caller's fault.
        ErrorKind::NotPrimary | ErrorKind::StaleTerm | ErrorKind::NotFound | ErrorKind::Cancelled => {
            ErrorKind::Unavailable
        }
        kind => kind,
    };
    Err(Error::Coverage { kind, counts, cause: format!("shard {shard}: {}", failure.error) })
}

fn to_hit(
    merged: MergedHit,
    chunks: Option<&std::collections::HashMap<(ShardId, u64), crate::cluster::client::FetchedChunk>>,
    include: Include,
) -> Option<Hit> {
    let MergedHit { shard, hit } = merged;
    let mut result = Hit {
        chunk_id: chunk_id(&hit.document_id, hit.ordinal),
        document_id: hit.document_id,
        score: hit.score,
        title: None,
        text: None,
        span: None,
        metadata: None,
        vector: None,
    };
    let Some(chunks) = chunks else { return Some(result) };
    // Not there any more: deleted between search and fetch. It must not be shown.
    let chunk = chunks.get(&(shard, hit.row))?;
    if include.text {
        result.title = Some(chunk.title.clone()).filter(|title| !title.is_empty());
        result.text = Some(chunk.text.clone());
        result.span = Some(chunk.span.clone());
    }
    if include.metadata {
        let parsed = serde_json::from_str(&chunk.metadata_json);
        result.metadata = Some(parsed.unwrap_or_else(|_| serde_json::Value::Object(Default::default())));
    }
    if include.vector {
        let halves = chunk.vector.chunks_exact(2).map(|bytes| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32());
        result.vector = Some(halves.collect());
    }
    Some(result)
}

/// Milliseconds with fractions.
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
