//! Generated values of our own types, and the fixed ones whose bytes are kept.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;

use cluster_config::audit::AuditRecord;
use cluster_config::cluster_state::{ClusterState, Liveness, NodeLifecycle, NodeRecord, RetiredCopy};
use cluster_config::collection::{Collection, CollectionSpec, FieldType, IndexSpec, Metric};
use cluster_config::error::ErrorKind;
use cluster_config::filter::{Condition, FieldValue, Filter, Predicate};
use cluster_config::ids::{CollectionId, CopyId, DocumentKey, Incarnation, Lineage, NodeId, OperationId, ShardId};
use cluster_config::operation::{Chunk, LogEntry, Operation};
use cluster_config::search::{
    Consistency, CopyPosition, EffortRung, NodeSearch, SearchKnobs, ShardAnswer, ShardHit, ShardQuery, ShardTarget,
};
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};
use cluster_config::shard_group::{CopyPhase, CopyRecord, CopyRole, CopyTarget, PrimaryGrant, ShardGroup};
use proptest::option;
use proptest::prelude::*;
use proto::convert::search::ShardReply;
use proto::convert::status::RemoteError;

pub(crate) fn shard_id() -> impl Strategy<Value = ShardId> {
    (any::<u64>(), any::<u32>()).prop_map(|(collection, index)| ShardId { collection: CollectionId(collection), index })
}

pub(crate) fn document_key() -> impl Strategy<Value = DocumentKey> {
    ("[a-zé#/ ]{1,20}", "[a-z0-9é\u{1F980}]{1,40}")
        .prop_map(|(tenant, id)| DocumentKey::with_tenant(tenant, id).expect("within the rule"))
}

pub(crate) fn copy_target() -> impl Strategy<Value = CopyTarget> {
    (shard_id(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(shard, copy, lineage, cfg_version)| CopyTarget {
        shard,
        copy: CopyId(copy),
        lineage: Lineage(lineage),
        cfg_version,
    })
}

pub(crate) fn copy_position() -> impl Strategy<Value = CopyPosition> {
    (option::of(shard_id()), any::<[u64; 6]>()).prop_map(|(shard, [copy, lineage, term, applied, generation, age])| {
        CopyPosition {
            shard,
            copy: CopyId(copy),
            lineage: Lineage(lineage),
            term: PrimaryTerm(term),
            applied: SeqNo(applied),
            generation,
            staleness_ms: age,
        }
    })
}

fn copy_record() -> impl Strategy<Value = CopyRecord> {
    let role = prop::sample::select(vec![CopyRole::Voter, CopyRole::ReadReplica]);
    let phase =
        prop::sample::select(vec![CopyPhase::New, CopyPhase::CatchingUp, CopyPhase::InSync, CopyPhase::Retiring]);
    (any::<u64>(), role, phase).prop_map(|(node, role, phase)| CopyRecord { node: NodeId(node), role, phase })
}

pub(crate) fn shard_group() -> impl Strategy<Value = ShardGroup> {
    let copies = prop::collection::btree_map(any::<u64>().prop_map(CopyId), copy_record(), 0..5);
    let in_sync = prop::collection::btree_set(any::<u64>().prop_map(CopyId), 0..5);
    let grant = option::of((1u64.., any::<u64>()));
    (shard_id(), any::<[u64; 3]>(), grant, in_sync, copies, any::<u32>()).prop_map(
        |(shard, [version, term, lineage], grant, in_sync, copies, min_in_sync)| ShardGroup {
            shard,
            version,
            primary_term: PrimaryTerm(term),
            primary: grant
                .map(|(copy, incarnation)| PrimaryGrant { copy: CopyId(copy), incarnation: Incarnation(incarnation) }),
            in_sync,
            copies,
            lineage: Lineage(lineage),
            min_in_sync,
        },
    )
}

fn field_type() -> impl Strategy<Value = FieldType> {
    use FieldType::{Bool, Datetime, Float, Integer, Keyword, Scan};
    prop::sample::select(vec![Keyword, Integer, Float, Bool, Datetime, Scan])
}

fn collection_spec() -> impl Strategy<Value = CollectionSpec> {
    let index = (
        option::of(any::<u32>()),
        option::of(any::<u32>()),
        any::<u32>(),
        option::of(any::<u32>()),
        0f32..1e6,
        any::<u32>(),
    )
        .prop_map(|(nlist, m, nbits, nprobe, oversample, training_floor)| IndexSpec {
            nlist,
            m,
            nbits,
            nprobe,
            oversample,
            training_floor,
        });
    let metric = prop::sample::select(vec![Metric::Cosine, Metric::L2, Metric::Dot]);
    let fields = prop::collection::btree_map("[a-z]{1,8}", field_type(), 0..6);
    let texts = (".{0,20}", option::of(".{0,20}"));
    (texts, any::<[u32; 5]>(), metric, fields, option::of(any::<u32>()), index, any::<u16>()).prop_map(
        |(
            (name, embedder),
            [dim, shard_count, copies, read_replicas, min_in_sync],
            metric,
            fields,
            pca_dim,
            index,
            hash_scheme,
        )| {
            CollectionSpec {
                name,
                dim,
                metric,
                shard_count,
                copies,
                read_replicas,
                min_in_sync,
                embedder,
                fields,
                pca_dim,
                index,
                hash_scheme,
            }
        },
    )
}

fn node_record() -> impl Strategy<Value = NodeRecord> {
    let texts = (".{0,20}", ".{0,20}", ".{0,20}");
    (1u64.., texts, any::<u32>(), any::<bool>(), any::<u64>(), any::<bool>(), any::<bool>()).prop_map(
        |(id, (rpc_address, http_address, zone), weight, is_data, incarnation, alive, active)| NodeRecord {
            id: NodeId(id),
            rpc_address,
            http_address,
            zone,
            weight,
            is_data,
            incarnation: Incarnation(incarnation),
            liveness: if alive { Liveness::Alive } else { Liveness::Dead },
            lifecycle: if active { NodeLifecycle::Active } else { NodeLifecycle::Draining },
        },
    )
}

fn audit_record() -> impl Strategy<Value = AuditRecord> {
    let copies = prop::collection::btree_set(any::<u64>().prop_map(CopyId), 0..3);
    let last = any::<[u64; 2]>().prop_map(|[term, seqno]| LogPosition { term: PrimaryTerm(term), seqno: SeqNo(seqno) });
    let last_seen = prop::collection::btree_map(any::<u64>().prop_map(CopyId), last, 0..3);
    (any::<[u64; 3]>(), ".{0,20}", shard_id(), copies, last_seen, any::<bool>()).prop_map(
        |([at_unix_ms, copy, lineage], by, shard, former_in_sync, last_seen, overrode_live)| AuditRecord {
            at_unix_ms,
            by,
            shard,
            copy: CopyId(copy),
            lineage: Lineage(lineage),
            former_in_sync,
            last_seen,
            overrode_live,
        },
    )
}

/// Any shape a state can have; its invariants are not held, as conversion does not depend on them.
pub(crate) fn cluster_state() -> impl Strategy<Value = ClusterState> {
    let retired = prop::collection::btree_map(
        any::<u64>().prop_map(CopyId),
        (shard_id(), any::<u64>()).prop_map(|(shard, node)| RetiredCopy { shard, node: NodeId(node) }),
        0..4,
    );
    let nodes = prop::collection::vec(node_record(), 0..4);
    let collections = prop::collection::vec((any::<u64>(), collection_spec(), any::<u64>()), 0..3);
    let shards = prop::collection::vec(shard_group(), 0..4);
    let audit = prop::collection::btree_map(any::<u64>(), audit_record(), 0..3);
    (".{0,20}", any::<[u64; 3]>(), any::<u32>(), nodes, collections, shards, retired, audit).prop_map(
        |(
            cluster_id,
            [version, next_collection, next_copy],
            feature_level,
            nodes,
            collections,
            shards,
            retired,
            audit,
        )| {
            let collection = |(id, spec, epoch)| (CollectionId(id), Collection { id: CollectionId(id), spec, epoch });
            ClusterState {
                cluster_id,
                version,
                feature_level,
                nodes: nodes.into_iter().map(|node| (node.id, node)).collect(),
                collections: collections.into_iter().map(collection).collect(),
                shards: shards.into_iter().map(|group| (group.shard, group)).collect(),
                retired,
                next_collection,
                next_copy,
                audit,
            }
        },
    )
}

fn chunk() -> impl Strategy<Value = Chunk> {
    let vector = prop::collection::vec(any::<[u8; 2]>(), 0..16).prop_map(|halves| halves.concat());
    (any::<u32>(), ".{0,40}", ".{0,20}", any::<[u64; 2]>(), vector).prop_map(
        |(ordinal, text, metadata_json, ends, vector)| Chunk {
            ordinal,
            text,
            metadata_json,
            span: ends[0].min(ends[1])..ends[0].max(ends[1]),
            vector,
        },
    )
}

pub(crate) fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        Just(Operation::Barrier),
        (document_key(), ".{0,20}", prop::collection::vec(chunk(), 1..4))
            .prop_map(|(key, title, chunks)| Operation::PutDocument { key, title, chunks }),
        document_key().prop_map(|key| Operation::DeleteDocument { key }),
        (any::<u64>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..64)).prop_map(
            |(generation, piece, bytes)| {
                Operation::InstallGeneration { generation, piece: piece / 2, piece_count: piece / 2 + 1, bytes }
            }
        ),
        (any::<u64>(), any::<u64>()).prop_map(|(generation, row_end)| Operation::IndexUpTo { generation, row_end }),
        (any::<u64>(), any::<u64>(), prop::collection::vec(effort_rung(), 0..4))
            .prop_map(|(generation, row_end, rungs)| Operation::SetEffortCurve { generation, row_end, rungs }),
    ]
}

fn effort_rung() -> impl Strategy<Value = EffortRung> {
    (any::<u32>(), 1f32..100.0, 0f32..1.0, 0f32..1.0).prop_map(|(nprobe, oversample, recall, codes_share)| EffortRung {
        nprobe,
        oversample,
        recall,
        codes_share,
    })
}

pub(crate) fn log_entry() -> impl Strategy<Value = LogEntry> {
    let id = prop_oneof![Just(0u128), any::<u128>()];
    (any::<u64>(), any::<u64>(), id, prop::collection::vec(operation(), 0..3)).prop_map(
        |(seqno, term, id, operations)| LogEntry {
            seqno: SeqNo(seqno),
            term: PrimaryTerm(term),
            operation_id: OperationId(id),
            operations,
        },
    )
}

fn field_value() -> impl Strategy<Value = FieldValue> {
    prop_oneof![
        ".{0,10}".prop_map(FieldValue::Keyword),
        any::<i64>().prop_map(FieldValue::Integer),
        (-1e300f64..1e300).prop_map(FieldValue::Float),
        any::<bool>().prop_map(FieldValue::Bool),
    ]
}

fn condition() -> impl Strategy<Value = Condition> {
    let bound = || option::of((field_value(), any::<bool>()));
    let predicate = prop_oneof![
        field_value().prop_map(Predicate::Eq),
        prop::collection::vec(field_value(), 0..4).prop_map(Predicate::In),
        (bound(), bound()).prop_map(|(lower, upper)| Predicate::Range { lower, upper }),
        any::<bool>().prop_map(Predicate::Exists),
    ];
    (".{0,10}", predicate).prop_map(|(field, predicate)| Condition { field, predicate })
}

fn filter() -> impl Strategy<Value = Filter> {
    let clause = || prop::collection::vec(condition(), 0..3);
    (clause(), clause(), clause()).prop_map(|(must, should, must_not)| Filter { must, should, must_not })
}

fn shard_query() -> impl Strategy<Value = ShardQuery> {
    let knobs = (option::of(1u32..), option::of(1f32..100.0), any::<bool>(), option::of(0.01f32..1.0)).prop_map(
        |(nprobe, oversample, exact, target_recall)| SearchKnobs { nprobe, oversample, exact, target_recall },
    );
    (prop::collection::vec(-1f32..1.0, 0..8), 1u32..20_000, filter(), "[a-z]{1,8}", knobs)
        .prop_map(|(vector, fetch_k, filter, tenant, knobs)| ShardQuery { vector, fetch_k, filter, tenant, knobs })
}

pub(crate) fn node_search() -> impl Strategy<Value = NodeSearch> {
    let target =
        (copy_target(), any::<u64>()).prop_map(|(target, seqno)| ShardTarget { target, min_seqno: SeqNo(seqno) });
    let consistency = prop::sample::select(vec![Consistency::Eventual, Consistency::Session, Consistency::Strong]);
    let queries = prop::collection::vec(shard_query(), 0..3);
    (queries, prop::collection::vec(target, 0..4), consistency, any::<u64>()).prop_map(
        |(queries, targets, consistency, max_staleness_ms)| NodeSearch {
            queries,
            targets,
            consistency,
            max_staleness_ms,
        },
    )
}

pub(crate) fn remote_error() -> impl Strategy<Value = RemoteError> {
    let kind = prop::sample::select(ErrorKind::ALL.to_vec());
    (kind, ".{0,60}", ".{0,60}", option::of(shard_group())).prop_map(|(kind, message, hint, register)| RemoteError {
        kind,
        message,
        hint,
        register: register.map(Box::new),
    })
}

fn shard_hit() -> impl Strategy<Value = ShardHit> {
    (any::<u64>(), -1f32..1.0, ".{0,10}", any::<u32>()).prop_map(|(row, score, document_id, ordinal)| ShardHit {
        row,
        score,
        document_id,
        ordinal,
    })
}

pub(crate) fn shard_reply() -> impl Strategy<Value = ShardReply> {
    let hits = prop::collection::vec(shard_hit(), 0..4);
    let answers =
        (copy_position(), prop::collection::vec((hits, any::<[u64; 3]>()), 0..3)).prop_map(|(position, parts)| {
            let answer = |(hits, [codes_scanned, codes_total, rows_exact]): (_, [u64; 3])| ShardAnswer {
                hits,
                position,
                codes_scanned,
                codes_total,
                rows_exact,
            };
            parts.into_iter().map(answer).collect::<Vec<_>>()
        });
    let outcome = prop_oneof![answers.prop_map(Ok), remote_error().prop_map(Err)];
    (shard_id(), outcome, any::<u64>(), any::<u64>()).prop_map(|(shard, outcome, queued_us, service_us)| ShardReply {
        shard,
        outcome,
        queued_us,
        service_us,
    })
}

/// A small state with one of everything.
pub(crate) fn sample_state() -> ClusterState {
    let node = |id: u64, zone: &str| NodeRecord {
        id: NodeId(id),
        rpc_address: format!("10.0.0.{id}:7001"),
        http_address: format!("10.0.0.{id}:7101"),
        zone: zone.into(),
        weight: 100,
        is_data: true,
        incarnation: Incarnation(10 + id),
        liveness: if id == 3 { Liveness::Dead } else { Liveness::Alive },
        lifecycle: if id == 2 { NodeLifecycle::Draining } else { NodeLifecycle::Active },
    };
    let mut spec = CollectionSpec::new("manual", 384);
    spec.embedder = Some("all-MiniLM-L6-v2".into());
    spec.fields = BTreeMap::from([("lang".into(), FieldType::Keyword), ("year".into(), FieldType::Integer)]);
    spec.index.nlist = Some(256);
    let collection = CollectionId(1);
    let shard = ShardId { collection, index: 0 };
    let copy = |node, role, phase| CopyRecord { node: NodeId(node), role, phase };
    let group = ShardGroup {
        shard,
        version: 5,
        primary_term: PrimaryTerm(2),
        primary: Some(PrimaryGrant { copy: CopyId(1), incarnation: Incarnation(11) }),
        in_sync: [CopyId(1), CopyId(2)].into(),
        copies: BTreeMap::from([
            (CopyId(1), copy(1, CopyRole::Voter, CopyPhase::InSync)),
            (CopyId(2), copy(2, CopyRole::Voter, CopyPhase::InSync)),
            (CopyId(4), copy(3, CopyRole::ReadReplica, CopyPhase::CatchingUp)),
        ]),
        lineage: Lineage(1),
        min_in_sync: 1,
    };
    ClusterState {
        cluster_id: "dev".into(),
        version: 42,
        feature_level: 1,
        nodes: [node(1, "a"), node(2, "b"), node(3, "c")].into_iter().map(|node| (node.id, node)).collect(),
        collections: BTreeMap::from([(collection, Collection { id: collection, spec, epoch: 3 })]),
        shards: BTreeMap::from([(shard, group)]),
        retired: BTreeMap::from([(CopyId(3), RetiredCopy { shard, node: NodeId(3) })]),
        next_collection: 2,
        next_copy: 5,
        audit: BTreeMap::new(),
    }
}

/// One of each operation, in one entry.
pub(crate) fn sample_entry() -> LogEntry {
    let key = DocumentKey::new("ключ #7").expect("a key");
    let chunk = |ordinal: u32, span: std::ops::Range<u64>, text: &str| Chunk {
        ordinal,
        text: text.into(),
        metadata_json: r#"{"lang":"en"}"#.into(),
        span,
        vector: vec![0x00, 0x3c, 0x00, 0xbc],
    };
    LogEntry {
        seqno: SeqNo(300),
        term: PrimaryTerm(7),
        operation_id: OperationId(0x0192_0000_0000_7000_8000_0000_0000_0001),
        operations: vec![
            Operation::Barrier,
            Operation::PutDocument {
                key: key.clone(),
                title: "A title".into(),
                chunks: vec![chunk(0, 0..5, "first"), chunk(1, 6..12, "second")],
            },
            Operation::DeleteDocument { key },
            Operation::InstallGeneration { generation: 2, piece: 0, piece_count: 1, bytes: vec![1, 2, 3] },
            Operation::IndexUpTo { generation: 2, row_end: 20_000 },
        ],
    }
}

/// A search with every knob and every kind of condition.
pub(crate) fn sample_search() -> NodeSearch {
    let condition = |field: &str, predicate| Condition { field: field.into(), predicate };
    let filter = Filter {
        must: vec![
            condition("lang", Predicate::Eq(FieldValue::Keyword("en".into()))),
            condition(
                "year",
                Predicate::Range {
                    lower: Some((FieldValue::Integer(-2020), true)),
                    upper: Some((FieldValue::Float(1.5), false)),
                },
            ),
        ],
        should: vec![condition("draft", Predicate::In(vec![FieldValue::Bool(true), FieldValue::Bool(false)]))],
        must_not: vec![condition("lang", Predicate::Exists(false))],
    };
    let knobs = SearchKnobs { nprobe: Some(16), oversample: Some(8.0), exact: true, target_recall: Some(0.95) };
    let shard = ShardId { collection: CollectionId(1), index: 3 };
    NodeSearch {
        queries: vec![ShardQuery { vector: vec![0.5, -0.25], fetch_k: 10, filter, tenant: "default".into(), knobs }],
        targets: vec![ShardTarget {
            target: CopyTarget { shard, copy: CopyId(9), lineage: Lineage(1), cfg_version: 6 },
            min_seqno: SeqNo(300),
        }],
        consistency: Consistency::Session,
        max_staleness_ms: 10_000,
    }
}
