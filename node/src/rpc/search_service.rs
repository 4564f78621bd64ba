//! Reads on this node: search, fetch, positions, listings. Every computation runs on the search pool under the caller's deadline;
//! a caller that leaves cancels it.

use std::sync::Arc;
use std::time::Instant;

use cluster_config::error::ErrorKind;
use cluster_config::ids::{DocumentKey, ShardId};
use cluster_config::limits;
use cluster_config::search::{Consistency, CopyPosition, NodeSearch, ShardQuery, ShardTarget};
use cluster_config::seqno::SeqNo;
use cluster_config::shard_group::CopyTarget;
use futures::StreamExt;
use futures::stream::{self, BoxStream, FuturesUnordered};
use proto::convert::ids::copy_target;
use proto::convert::search::{ShardReply, fetch_consistency};
use proto::convert::{each, to_wire};
use proto::v1;
use proto::v1::search_service_server::SearchService;
use tonic::{Request, Response, Status};

use super::client::Peers;
use super::deadline::deadline_of;
use super::search_jobs::{SearchJob, Weighed, into_jobs, into_replies};
use crate::copies::{Copies, Copy};
use crate::error::Error;
use crate::pool::{Pool, PoolError};
use crate::shard::StoredChunk;
use crate::telemetry::Metrics;
use crate::vector::Cancel;

/// Serves reads from the open copies.
#[derive(Clone)]
pub struct SearchServer {
    /// Whose envelopes are accepted.
    pub peers: Peers,
    /// The open copies.
    pub copies: Arc<Copies>,
    /// Where FAISS and RocksDB reads run.
    pub pool: Pool,
    /// Counted here.
    pub metrics: Arc<Metrics>,
}

/// Cancels the computation when the stream it belongs to is dropped.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl SearchServer {
    fn check(&self, envelope: Option<&v1::Envelope>) -> Result<(), Error> {
        self.peers.check_envelope(envelope).map_err(|message| Error::new(ErrorKind::InvalidArgument, message))
    }

    /// Searches copies that are answered together. One reply per target.
    async fn search_together(&self, targets: Vec<Weighed<Found>>, read: Read, job: SearchJob) -> Vec<ShardReply> {
        let mut replies = Vec::with_capacity(targets.len());
        let mut admitted = Vec::with_capacity(targets.len());
        for (rows, Found { target, copy }) in targets {
            match read.admit(copy, &target).await {
                Ok(copy) => admitted.push((rows, (target.target.shard, copy))),
                Err(error) => replies.push(ShardReply::refused(target.target.shard, error)),
            }
        }
        let shards: Vec<ShardId> = admitted.iter().map(|(_, (shard, _))| *shard).collect();
        let jobs = into_jobs(admitted).into_iter().map(|copies| {
            let job = job.clone();
            move || -> Vec<ShardReply> { copies.iter().map(|(_, (shard, copy))| job.run(copy).reply(*shard)).collect() }
        });
        match in_time(read.deadline, self.pool.run_all(jobs.collect())).await {
            Ok(searched) => replies.extend(searched.into_iter().flatten()),
            Err(error) => replies.extend(shards.into_iter().map(|shard| ShardReply::refused(shard, error.clone()))),
        }
        for reply in &replies {
            let label = reply.outcome.as_ref().map_or_else(|error| error.kind.as_str(), |_| "ok");
            self.metrics.searches.with_label_values(&[label]).inc();
        }
        replies
    }

    /// Finds the target's copy, and weighs it by the rows that the queries may look at there. Whoever may have to wait for his turn, or
    /// compares every row, is to keep nobody else waiting.
    fn find(&self, target: ShardTarget, read: Read, queries: &[ShardQuery]) -> Weighed<Found> {
        let copy = self.copies.find(&target.target);
        let rows = match &copy {
            Ok(copy) if read.consistency == Consistency::Eventual && !queries.iter().any(|query| query.knobs.exact) => {
                copy.shard.rows_live().saturating_mul(queries.len() as u64)
            }
            _ => u64::MAX,
        };
        (rows, Found { target, copy })
    }

    async fn read<T: Send + 'static>(
        &self,
        target: ShardTarget,
        read: Read,
        job: impl FnOnce(&Copy) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let copy = read.admit(self.copies.find(&target.target), &target).await?;
        in_time(read.deadline, self.pool.run(move || job(&copy))).await?
    }

    async fn fetch_target(
        &self,
        target: v1::FetchTarget,
        with_vectors: bool,
        read: Read,
    ) -> Result<(CopyPosition, Vec<v1::FetchedChunk>), Error> {
        let copy = copy_target("target", target.target)?;
        let wanted = ShardTarget { target: copy, min_seqno: SeqNo(target.min_seqno) };
        let keys: Vec<DocumentKey> = each("keys", target.keys)?;
        let rows = target.rows;
        if rows.len() > limits::RESCORE_MAX as usize || keys.len() > limits::PAGE_ROWS_MAX as usize {
            return Err(Error::new(ErrorKind::TooLarge, "too many rows or documents in one fetch"));
        }
        let (position, chunks) = self
            .read(wanted, read, move |copy| {
                let mut chunks = copy.shard.fetch_rows(&rows, with_vectors)?;
                chunks.extend(copy.shard.fetch_documents(&keys, with_vectors)?);
                Ok((copy.position(), chunks))
            })
            .await?;
        Ok((position, chunks.into_iter().map(|chunk| fetched(copy, chunk)).collect()))
    }
}

/// What the pool gives, if it does so before the deadline.
async fn in_time<T>(deadline: Instant, running: impl Future<Output = Result<T, PoolError>>) -> Result<T, Error> {
    let timed = tokio::time::timeout_at(deadline.into(), running).await;
    let ran = timed.map_err(|_| Error::new(ErrorKind::DeadlineExceeded, "the deadline passed in the search pool"))?;
    Ok(ran?)
}

/// A target and its copy, if it is here.
struct Found {
    target: ShardTarget,
    copy: Result<Arc<Copy>, Error>,
}

/// What a read asks for besides its queries.
#[derive(Clone, Copy)]
struct Read {
    consistency: Consistency,
    max_staleness_ms: u64,
    deadline: Instant,
}

impl Read {
    /// The copy, once it can serve the read, or why it cannot.
    async fn admit(&self, copy: Result<Arc<Copy>, Error>, target: &ShardTarget) -> Result<Arc<Copy>, Error> {
        let copy = copy?;
        match self.consistency {
            Consistency::Eventual => {
                let staleness_ms = copy.handle.position().staleness_ms;
                if staleness_ms > self.max_staleness_ms {
                    let heard = match staleness_ms {
                        u64::MAX => "has not heard from its primary yet".to_owned(),
                        _ => format!("heard from its primary {staleness_ms} ms ago"),
                    };
                    let message = format!("copy {} {heard}", copy.id);
                    return Err(Error::new(ErrorKind::Unavailable, message).with_hint("ask another copy"));
                }
            }
            Consistency::Session => {
                let now = Instant::now();
                let patience = self.deadline.saturating_duration_since(now) / 2;
                let until = now + patience.min(limits::SESSION_WAIT_MAX);
                let waited = copy.handle.wait_applied(target.min_seqno, until.into()).await;
                waited.map_err(|_| {
                    let applied = copy.handle.position().applied;
                    let message = format!("copy {} has applied {applied}, not yet {}", copy.id, target.min_seqno);
                    Error::new(ErrorKind::Unavailable, message).with_hint("ask another copy")
                })?;
            }
            Consistency::Strong => copy.handle.strong_read(self.deadline.into()).await.map(drop)?,
        }
        Ok(copy)
    }
}

fn fetched(copy: CopyTarget, chunk: StoredChunk) -> v1::FetchedChunk {
    v1::FetchedChunk {
        shard: Some(copy.shard.into()),
        row: chunk.row,
        key: Some(chunk.key.into()),
        title: chunk.title,
        chunk: Some(chunk.chunk.into()),
    }
}

#[tonic::async_trait]
impl SearchService for SearchServer {
    type SearchStream = BoxStream<'static, Result<v1::ShardResult, Status>>;

    async fn search(&self, request: Request<v1::SearchRequest>) -> Result<Response<Self::SearchStream>, Status> {
        let deadline = deadline_of(&request);
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        let search = NodeSearch::try_from(request)?;
        let read = Read { consistency: search.consistency, max_staleness_ms: search.max_staleness_ms, deadline };
        let cancel = Cancel::new(Some(deadline));
        let guard = CancelOnDrop(cancel.clone());
        let queries: Arc<[ShardQuery]> = search.queries.into();
        let found: Vec<Weighed<Found>> =
            search.targets.into_iter().map(|target| self.find(target, read, &queries)).collect();
        let job = SearchJob { queries, cancel, metrics: Arc::clone(&self.metrics), began: Instant::now() };
        let searches = into_replies(found).into_iter().map(|targets| {
            let (server, job) = (self.clone(), job.clone());
            async move { server.search_together(targets, read, job).await }
        });
        let mut replies: FuturesUnordered<_> = searches.collect();
        // The headers leave with the first replies, in one packet: sent ahead they would cost a wake-up on both sides.
        let first = replies.next().await;
        let stream = stream::iter(first).chain(replies).flat_map(move |replies| {
            let _held = &guard;
            stream::iter(replies).map(|reply| Ok(v1::ShardResult::from(reply)))
        });
        Ok(Response::new(stream.boxed()))
    }

    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Result<Response<v1::FetchReply>, Status> {
        let deadline = deadline_of(&request);
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        let with_vectors = request.with_vectors;
        let consistency = fetch_consistency(request.consistency)?;
        let read = Read { consistency, max_staleness_ms: u64::MAX, deadline };
        let fetches = request.targets.into_iter().map(|target| async move {
            let shard = target.target.and_then(|target| target.shard);
            (shard, self.fetch_target(target, with_vectors, read).await)
        });
        let mut reply = v1::FetchReply::default();
        for (shard, outcome) in futures::future::join_all(fetches).await {
            match outcome {
                Ok((position, chunks)) => {
                    reply.positions.push(position.into());
                    reply.chunks.extend(chunks);
                }
                Err(error) => reply.failures.push(v1::ShardFailure { shard, error: Some(error.into()) }),
            }
        }
        Ok(Response::new(reply))
    }

    async fn positions(&self, request: Request<v1::PositionsRequest>) -> Result<Response<v1::PositionsReply>, Status> {
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        let targets: Vec<CopyTarget> = each("targets", request.targets)?;
        let found = targets.iter().filter_map(|target| self.copies.find(target).ok());
        Ok(Response::new(v1::PositionsReply { positions: to_wire(found.map(|copy| copy.position())) }))
    }

    async fn list_documents(
        &self,
        request: Request<v1::ListDocumentsRequest>,
    ) -> Result<Response<v1::ListDocumentsReply>, Status> {
        let deadline = deadline_of(&request);
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        let target = copy_target("target", request.target)?;
        let target = ShardTarget { target, min_seqno: SeqNo(request.min_seqno) };
        let consistency = fetch_consistency(request.consistency)?;
        let read = Read { consistency, max_staleness_ms: u64::MAX, deadline };
        let limit = request.limit.clamp(1, limits::PAGE_ROWS_MAX) as usize;
        let (tenant, after) = (request.tenant, request.after_document_id);
        let reply = self.read(target, read, move |copy| {
            let after = (!after.is_empty()).then_some(after.as_str());
            let (documents, more) = copy.shard.list_documents(&tenant, after, limit)?;
            Ok(v1::ListDocumentsReply {
                position: Some(copy.position().into()),
                documents: documents
                    .into_iter()
                    .map(|document| v1::ListedDocument {
                        key: Some(document.key.into()),
                        title: document.title,
                        chunk_count: document.chunk_count,
                        seqno: document.seqno,
                    })
                    .collect(),
                more,
            })
        });
        Ok(Response::new(reply.await?))
    }
}
