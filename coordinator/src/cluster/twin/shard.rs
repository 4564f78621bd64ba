//! What the twin's shards hold, and how its copies answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cluster_config::collection::Metric;
use cluster_config::error::ErrorKind;
use cluster_config::filter::{Condition, DOCUMENT_ID_FIELD, FieldValue, Filter, Predicate};
use cluster_config::ids::{CopyId, DocumentKey, NodeId, OperationId};
use cluster_config::operation::{Chunk, Operation};
use cluster_config::search::{Consistency, CopyPosition, ShardAnswer, ShardHit, ShardQuery};
use cluster_config::seqno::SeqNo;
use cluster_config::shard_group::ShardGroup;
use half::f16;

use super::Inner;
use crate::cluster::client::*;
use crate::retrieve::merge::ranking;

#[derive(Clone, Debug)]
struct Row {
    key: DocumentKey,
    title: String,
    chunk: Chunk,
    /// Put at, and, once replaced or deleted, gone from.
    seqno: SeqNo,
    gone_at: Option<SeqNo>,
}

impl Row {
    fn is_live_at(&self, position: SeqNo) -> bool {
        self.seqno <= position && self.gone_at.is_none_or(|gone_at| gone_at > position)
    }
}

/// One shard's history; a copy sees it up to its position.
#[derive(Debug, Default)]
pub(super) struct ShardData {
    rows: Vec<Row>,
    pub(super) last: SeqNo,
    operations: HashMap<OperationId, SeqNo>,
    /// Where copies of nodes that are held back stopped.
    stopped_at: BTreeMap<CopyId, SeqNo>,
}

impl ShardData {
    pub(super) fn hold_back(&mut self, copy: Option<CopyId>) {
        self.stopped_at.extend(copy.map(|copy| (copy, self.last)));
    }

    pub(super) fn document_ids(&self) -> BTreeSet<String> {
        self.live(self.last).map(|(_, row)| row.key.document_id.clone()).collect()
    }

    pub(super) fn live_rows(&self) -> u64 {
        self.live(self.last).count() as u64
    }

    fn live(&self, position: SeqNo) -> impl Iterator<Item = (u64, &Row)> {
        let numbered = self.rows.iter().enumerate().map(|(number, row)| (number as u64, row));
        numbered.filter(move |(_, row)| row.is_live_at(position))
    }

    fn apply(&mut self, operation: &Operation) {
        let seqno = self.last;
        let remove = |rows: &mut Vec<Row>, key: &DocumentKey| {
            let live = rows.iter_mut().filter(|row| row.key == *key && row.gone_at.is_none());
            live.for_each(|row| row.gone_at = Some(seqno));
        };
        match operation {
            Operation::PutDocument { key, title, chunks } => {
                remove(&mut self.rows, key);
                self.rows.extend(chunks.iter().map(|chunk| Row {
                    key: key.clone(),
                    title: title.clone(),
                    chunk: chunk.clone(),
                    seqno,
                    gone_at: None,
                }));
            }
            Operation::DeleteDocument { key } => remove(&mut self.rows, key),
            Operation::Barrier
            | Operation::InstallGeneration { .. }
            | Operation::IndexUpTo { .. }
            | Operation::SetEffortCurve { .. } => {}
        }
    }
}

impl Inner {
    /// Checks the target as a real node would.
    pub(super) fn check(&self, node: NodeId, target: &CopyTarget) -> Result<&ShardGroup, NodeError> {
        let gone =
            || NodeError::new(ErrorKind::Unavailable, format!("node {node} does not serve copy {}", target.copy));
        let group = self.state.shards.get(&target.shard).ok_or_else(gone)?;
        if group.node_of(target.copy) != Some(node) {
            return Err(gone());
        }
        if group.lineage != target.lineage {
            let text = format!("copy {} is of lineage {}, not {}", target.copy, group.lineage, target.lineage);
            return Err(NodeError::new(ErrorKind::TokenVoid, text));
        }
        Ok(group)
    }

    pub(super) fn position(&self, target: &CopyTarget) -> CopyPosition {
        let group = &self.state.shards[&target.shard];
        let may_lag = group.primary_copy() != Some(target.copy);
        let held_since = group.node_of(target.copy).and_then(|node| self.held_back.get(&node)).filter(|_| may_lag);
        let applied = self.shards.get(&target.shard).map_or(SeqNo::ZERO, |shard| match held_since {
            Some(_) => shard.stopped_at.get(&target.copy).copied().unwrap_or(SeqNo::ZERO),
            None => shard.last,
        });
        CopyPosition {
            shard: Some(target.shard),
            copy: target.copy,
            lineage: group.lineage,
            term: group.primary_term,
            applied,
            generation: 0,
            staleness_ms: held_since.map_or(0, |since| 1 + since.elapsed().as_millis() as u64),
        }
    }

    /// Whether the copy may answer now: `Ok(false)` if it must apply more first.
    pub(super) fn admit(
        &self,
        node: NodeId,
        target: &CopyTarget,
        consistency: Consistency,
        min_seqno: SeqNo,
        max_staleness_ms: u64,
    ) -> Result<bool, NodeError> {
        let group = self.check(node, target)?;
        let position = self.position(target);
        match consistency {
            Consistency::Eventual if position.staleness_ms > max_staleness_ms => {
                let text = format!("copy {} heard from its primary {} ms ago", target.copy, position.staleness_ms);
                Err(NodeError::new(ErrorKind::Unavailable, text))
            }
            Consistency::Eventual => Ok(true),
            Consistency::Strong if group.primary_copy() != Some(target.copy) => Err(not_primary(target, group)),
            Consistency::Session | Consistency::Strong => Ok(position.applied >= min_seqno),
        }
    }

    pub(super) fn search(&self, target: &CopyTarget, queries: &[ShardQuery]) -> Vec<ShardAnswer> {
        let spec = &self.state.collections[&target.shard.collection].spec;
        let position = self.position(target);
        let live: Vec<(u64, &Row)> =
            self.shards.get(&target.shard).into_iter().flat_map(|s| s.live(position.applied)).collect();
        let answers = queries.iter().map(|query| {
            let allowed = live.iter().filter(|(_, row)| row.key.tenant == query.tenant && passes(&query.filter, row));
            let mut hits: Vec<ShardHit> = allowed
                .map(|(number, row)| ShardHit {
                    row: *number,
                    score: score(spec.metric, &query.vector, &row.chunk.vector),
                    document_id: row.key.document_id.clone(),
                    ordinal: row.chunk.ordinal,
                })
                .collect();
            hits.sort_by(ranking);
            hits.truncate(query.fetch_k as usize);
            ShardAnswer { hits, position, rows_exact: live.len() as u64, ..ShardAnswer::default() }
        });
        answers.collect()
    }

    pub(super) fn fetch(&self, wanted: &FetchTarget, with_vectors: bool) -> Vec<FetchedChunk> {
        let position = self.position(&wanted.target).applied;
        let live = self.shards.get(&wanted.target.shard).into_iter().flat_map(|shard| shard.live(position));
        let found = live.filter(|(number, row)| wanted.rows.contains(number) || wanted.keys.contains(&row.key));
        let chunks = found.map(|(number, row)| FetchedChunk {
            shard: wanted.target.shard,
            row: number,
            key: row.key.clone(),
            title: row.title.clone(),
            ordinal: row.chunk.ordinal,
            text: row.chunk.text.clone(),
            metadata_json: row.chunk.metadata_json.clone(),
            span: row.chunk.span.clone(),
            vector: if with_vectors { row.chunk.vector.clone() } else { Vec::new() },
        });
        chunks.collect()
    }

    pub(super) fn list(&self, page: &PageRequest) -> DocumentPage {
        let target = &page.target.target;
        let position = self.position(target);
        let live = self.shards.get(&target.shard).into_iter().flat_map(|shard| shard.live(position.applied));
        let wanted = live.filter(|(_, row)| row.key.tenant == page.tenant && row.key.document_id > page.after);
        let mut documents: BTreeMap<String, ListedDocument> = BTreeMap::new();
        for (_, row) in wanted {
            let listed = documents.entry(row.key.document_id.clone()).or_insert_with(|| ListedDocument {
                key: row.key.clone(),
                title: row.title.clone(),
                chunk_count: 0,
                seqno: row.seqno,
            });
            listed.chunk_count += 1;
        }
        let more = documents.len() > page.limit as usize;
        DocumentPage { position, documents: documents.into_values().take(page.limit as usize).collect(), more }
    }

    pub(super) fn write(&mut self, node: NodeId, write: &NodeWrite) -> Result<WriteAck, NodeError> {
        let group = self.check(node, &write.target)?;
        if group.primary_copy() != Some(write.target.copy) {
            return Err(not_primary(&write.target, group));
        }
        let copies_acked = group.in_sync.len() as u32;
        let shard = self.shards.entry(write.target.shard).or_default();
        let known = shard.operations.get(&write.operation_id).copied();
        let seqno = known.unwrap_or_else(|| {
            shard.last = shard.last.next();
            shard.operations.insert(write.operation_id, shard.last);
            write.operations.iter().for_each(|operation| shard.apply(operation));
            shard.last
        });
        let position = self.position(&write.target);
        Ok(WriteAck { position, seqno, copies_acked, deduplicated: known.is_some() })
    }
}

fn not_primary(target: &CopyTarget, group: &ShardGroup) -> NodeError {
    let text = format!("copy {} is not the primary", target.copy);
    NodeError::new(ErrorKind::NotPrimary, text).with_register(group.clone())
}

fn score(metric: Metric, query: &[f32], stored: &[u8]) -> f32 {
    let row = stored.chunks_exact(2).map(|bytes| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32());
    match metric {
        Metric::Cosine | Metric::Dot => query.iter().zip(row).map(|(a, b)| a * b).sum(),
        Metric::L2 => 1.0 / (1.0 + query.iter().zip(row).map(|(a, b)| (a - b) * (a - b)).sum::<f32>()),
    }
}

fn passes(filter: &Filter, row: &Row) -> bool {
    let metadata: serde_json::Value = serde_json::from_str(&row.chunk.metadata_json).unwrap_or_default();
    let holds = |condition: &Condition| {
        let values = if condition.field == DOCUMENT_ID_FIELD {
            vec![FieldValue::Keyword(row.key.document_id.clone())]
        } else {
            metadata.get(&condition.field).map(field_values).unwrap_or_default()
        };
        match &condition.predicate {
            Predicate::Exists(wanted) => values.is_empty() != *wanted,
            Predicate::Eq(wanted) => values.contains(wanted),
            Predicate::In(wanted) => values.iter().any(|value| wanted.contains(value)),
            Predicate::Range { lower, upper } => values.iter().any(|value| {
                let above =
                    lower.as_ref().is_none_or(|(bound, inclusive)| value > bound || (*inclusive && value == bound));
                let below =
                    upper.as_ref().is_none_or(|(bound, inclusive)| value < bound || (*inclusive && value == bound));
                above && below
            }),
        }
    };
    filter.must.iter().all(holds)
        && !filter.must_not.iter().any(holds)
        && (filter.should.is_empty() || filter.should.iter().any(holds))
}

/// The values of a field: one, or those of a list.
fn field_values(value: &serde_json::Value) -> Vec<FieldValue> {
    let one = |value: &serde_json::Value| serde_json::from_value(value.clone()).ok();
    match value {
        serde_json::Value::Array(items) => items.iter().filter_map(one).collect(),
        value => one(value).into_iter().collect(),
    }
}
