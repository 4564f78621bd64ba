//! Vector searches over one copy, at one applied position.

use std::slice;

use cluster_config::error::ConfigError;
use cluster_config::limits;
use cluster_config::search::{CopyPosition, ShardAnswer, ShardHit, ShardQuery};

use super::filter::{FilterReader, reads_what_is};
use super::keys::{self, Family};
use super::label;
use super::recall::{Sample, is_default_effort};
use super::records::{RowHead, corrupt, decode};
use super::store::Frozen;
use super::view::View;
use super::{Shard, ShardError};
use crate::replication::storage::StorageError;
use crate::vector::{Cancel, SearchView, search_rows};

impl Shard {
    /// The `fetch_k` best live chunks of the query's tenant that pass its filter, best first (score, then document id and ordinal).
    ///
    /// Shapes: query `[dim]`. Cost: the lists probed plus the exact tail; runs on the search pool.
    /// Errors: `InvalidArgument` (dimension, filter, bounds), `Cancelled`, `DeadlineExceeded`, `Unavailable` (poisoned).
    pub fn search(&self, query: &ShardQuery, cancel: &Cancel) -> Result<ShardAnswer, ShardError> {
        let mut answers = self.search_all(slice::from_ref(query), cancel)?;
        Ok(answers.pop().expect("one answer for one query"))
    }

    /// [`Shard::search`] for each of the queries, all at one position: the answers are those that each would get alone.
    pub fn search_all(&self, queries: &[ShardQuery], cancel: &Cancel) -> Result<Vec<ShardAnswer>, ShardError> {
        self.store.check()?;
        queries.iter().try_for_each(|query| self.validate_query(query))?;
        let (view, frozen) = if queries.iter().any(|query| reads_what_is(&self.spec, &query.filter)) {
            let _held = self.publication.read();
            (self.view(), Some(self.store.freeze()?))
        } else {
            (self.view(), None)
        };
        let mut answers = Vec::with_capacity(queries.len());
        for alike in queries.chunk_by(differ_in_vector_only) {
            self.search_alike(alike, &view, frozen.as_ref(), cancel, &mut answers)?;
        }
        Ok(answers)
    }

    /// Queries, at least one, that [`differ_in_vector_only`].
    fn search_alike(
        &self,
        queries: &[ShardQuery],
        view: &View,
        frozen: Option<&Frozen<'_>>,
        cancel: &Cancel,
        answers: &mut Vec<ShardAnswer>,
    ) -> Result<(), ShardError> {
        let ShardQuery { fetch_k, filter, tenant, knobs, .. } = &queries[0];
        let reader = FilterReader { store: &self.store, frozen, spec: &self.spec, view, tenant, cancel };
        let allowed = self.guard(reader.allowed(filter))?;
        let searched = SearchView {
            index: view.indexes.serving.as_deref(),
            measured: view.indexes.efforts.as_ref().map(|efforts| &efforts.table),
            indexed_row_end: view.applied.indexed_row_end,
            vectors: &self.vectors,
            row_end: view.applied.row_end,
            allowed: &allowed,
            metric: self.spec.metric,
        };
        let fetch_k = *fetch_k as usize;
        let vectors: Vec<&[f32]> = queries.iter().map(|query| &query.vector[..]).collect();
        for (query, scored) in
            vectors.iter().zip(search_rows(&searched, &vectors, fetch_k, knobs, &self.spec.index, cancel)?)
        {
            if scored.codes_scanned > 0 && is_default_effort(knobs) {
                self.recall_watch.offer(|| Sample {
                    generation: view.applied.generation,
                    allowed: allowed.clone(),
                    query: query.to_vec(),
                    rows: scored.rows.iter().map(|(row, _)| *row).collect(),
                    fetch_k,
                });
            }
            answers.push(ShardAnswer {
                hits: self.guard(self.name_hits(&scored.rows))?,
                position: self.position_of(view),
                codes_scanned: scored.codes_scanned,
                codes_total: scored.codes_total,
                rows_exact: scored.rows_exact,
            });
        }
        Ok(())
    }

    fn validate_query(&self, query: &ShardQuery) -> Result<(), ShardError> {
        if query.vector.len() != self.spec.dim as usize {
            return Err(ConfigError::new(
                "vector",
                format!("{} dimensions", query.vector.len()),
                format!("send {}", self.spec.dim),
            )
            .into());
        }
        if query.fetch_k == 0 || query.fetch_k > limits::RESCORE_MAX {
            return Err(ConfigError::new(
                "fetch_k",
                format!("{} is out of range", query.fetch_k),
                format!("use 1 to {}", limits::RESCORE_MAX),
            )
            .into());
        }
        Ok(query.filter.validate(&self.spec)?)
    }

    /// Puts the documents' names to scored rows.
    fn name_hits(&self, rows: &[(u64, f32)]) -> Result<Vec<ShardHit>, ShardError> {
        rows.iter().for_each(|(row, _)| self.vectors.fetch_label(*row));
        let mut hits = Vec::with_capacity(rows.len());
        let mut unlabelled = Vec::new();
        for (row, score) in rows {
            match label::decode(self.vectors.label(*row)) {
                Some((id, ordinal)) => {
                    hits.push(ShardHit { row: *row, score: *score, document_id: id.to_owned(), ordinal });
                }
                None => unlabelled.push((*row, *score)),
            }
        }
        if !unlabelled.is_empty() {
            hits.extend(self.read_names(&unlabelled)?);
        }
        hits.sort_by(|a, b| {
            let by_score = b.score.total_cmp(&a.score);
            by_score.then_with(|| a.document_id.cmp(&b.document_id)).then(a.ordinal.cmp(&b.ordinal))
        });
        Ok(hits)
    }

    fn read_names(&self, rows: &[(u64, f32)]) -> Result<Vec<ShardHit>, StorageError> {
        let keys: Vec<Vec<u8>> = rows.iter().map(|(row, _)| keys::row_head(*row)).collect();
        let named = self.store.get_many(Family::Docs, &keys)?.into_iter().zip(rows).map(|(head, (row, score))| {
            let head = head.ok_or_else(|| corrupt("row head", &format!("row {row} has none")))?;
            let RowHead { document_id, ordinal, .. } = decode("row head", &head)?;
            Ok(ShardHit { row: *row, score: *score, document_id, ordinal })
        });
        named.collect()
    }

    /// Where the copy stands now.
    pub fn position(&self) -> CopyPosition {
        self.position_of(&self.view())
    }

    pub(crate) fn position_of(&self, view: &View) -> CopyPosition {
        CopyPosition {
            shard: Some(self.identity.shard),
            copy: self.identity.copy,
            lineage: self.identity.lineage,
            term: self.log.state().current_term,
            applied: view.applied.position.seqno,
            generation: view.applied.generation,
            staleness_ms: 0,
        }
    }
}

/// Whether one effort and one set of allowed rows serve both queries.
fn differ_in_vector_only(left: &ShardQuery, right: &ShardQuery) -> bool {
    let (ShardQuery { vector: _, fetch_k, filter, tenant, knobs }, other) = (left, right);
    *fetch_k == other.fetch_k && *knobs == other.knobs && *tenant == other.tenant && *filter == other.filter
}
