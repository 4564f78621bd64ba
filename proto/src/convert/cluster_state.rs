//! The cluster state and everything in it. Maps travel as lists; a key that stands in a list twice is refused.

use std::collections::BTreeMap;

use cluster_config::audit::AuditRecord;
use cluster_config::cluster_state::{ClusterState, Liveness, NodeLifecycle, NodeRecord, RetiredCopy};
use cluster_config::collection::{Collection, CollectionSpec, FieldType, IndexSpec, Metric};
use cluster_config::ids::{CollectionId, CopyId, Incarnation, Lineage, NodeId};
use cluster_config::seqno::{LogPosition, PrimaryTerm};
use cluster_config::shard_group::{CopyPhase, CopyRecord, CopyRole, PrimaryGrant, ShardGroup};

use super::ids::shard_id;
use super::{WireError, convert_enum, each, enum_field, required, to_wire};
use crate::v1;

convert_enum!(CopyRole, v1::CopyRole, "role", [Voter, ReadReplica]);
convert_enum!(CopyPhase, v1::CopyPhase, "phase", [New, CatchingUp, InSync, Retiring]);
convert_enum!(Metric, v1::Metric, "metric", [Cosine, L2, Dot]);
convert_enum!(FieldType, v1::FieldType, "fields", [Keyword, Integer, Float, Bool, Datetime, Scan]);
convert_enum!(Liveness, v1::Liveness, "liveness", [Alive, Dead]);
convert_enum!(NodeLifecycle, v1::NodeLifecycle, "lifecycle", [Active, Draining]);

/// Collects a list that stands for a map. Errors: a key twice.
fn keyed<K: Ord + std::fmt::Debug, V>(
    field: &str,
    pairs: impl IntoIterator<Item = (K, V)>,
) -> Result<BTreeMap<K, V>, WireError> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        if map.contains_key(&key) {
            return Err(WireError::new(field, format!("{key:?} stands in the list twice")));
        }
        map.insert(key, value);
    }
    Ok(map)
}

/// A copy with its id, as it stands in the list of a register.
struct KeyedCopy(CopyId, CopyRecord);

impl From<KeyedCopy> for v1::CopyRecord {
    fn from(KeyedCopy(copy, record): KeyedCopy) -> Self {
        Self {
            copy_id: copy.0,
            node: record.node.0,
            role: v1::CopyRole::from(record.role).into(),
            phase: v1::CopyPhase::from(record.phase).into(),
        }
    }
}

impl TryFrom<v1::CopyRecord> for KeyedCopy {
    type Error = WireError;

    fn try_from(wire: v1::CopyRecord) -> Result<Self, WireError> {
        let record = CopyRecord {
            node: NodeId(wire.node),
            role: enum_field::<v1::CopyRole, _>("role", wire.role)?,
            phase: enum_field::<v1::CopyPhase, _>("phase", wire.phase)?,
        };
        Ok(Self(CopyId(wire.copy_id), record))
    }
}

impl From<ShardGroup> for v1::ShardGroup {
    fn from(group: ShardGroup) -> Self {
        Self {
            shard: Some(group.shard.into()),
            version: group.version,
            primary_term: group.primary_term.0,
            primary_copy: group.primary.map_or(0, |grant| grant.copy.0),
            primary_incarnation: group.primary.map_or(0, |grant| grant.incarnation.0),
            in_sync: group.in_sync.into_iter().map(|copy| copy.0).collect(),
            copies: to_wire(group.copies.into_iter().map(|(copy, record)| KeyedCopy(copy, record))),
            lineage: group.lineage.0,
            min_in_sync: group.min_in_sync,
        }
    }
}

impl TryFrom<v1::ShardGroup> for ShardGroup {
    type Error = WireError;

    fn try_from(wire: v1::ShardGroup) -> Result<Self, WireError> {
        let copies: Vec<KeyedCopy> = each("copies", wire.copies)?;
        let primary = (wire.primary_copy != 0).then_some(PrimaryGrant {
            copy: CopyId(wire.primary_copy),
            incarnation: Incarnation(wire.primary_incarnation),
        });
        Ok(Self {
            shard: shard_id("shard", wire.shard)?,
            version: wire.version,
            primary_term: PrimaryTerm(wire.primary_term),
            primary,
            in_sync: wire.in_sync.into_iter().map(CopyId).collect(),
            copies: keyed("copies", copies.into_iter().map(|KeyedCopy(copy, record)| (copy, record)))?,
            lineage: Lineage(wire.lineage),
            min_in_sync: wire.min_in_sync,
        })
    }
}

impl From<IndexSpec> for v1::IndexSpec {
    fn from(index: IndexSpec) -> Self {
        Self {
            nlist: index.nlist,
            m: index.m,
            nbits: index.nbits,
            nprobe: index.nprobe,
            oversample: index.oversample,
            training_floor: index.training_floor,
        }
    }
}

impl From<v1::IndexSpec> for IndexSpec {
    fn from(wire: v1::IndexSpec) -> Self {
        Self {
            nlist: wire.nlist,
            m: wire.m,
            nbits: wire.nbits,
            nprobe: wire.nprobe,
            oversample: wire.oversample,
            training_floor: wire.training_floor,
        }
    }
}

impl From<CollectionSpec> for v1::CollectionSpec {
    fn from(spec: CollectionSpec) -> Self {
        let fields = spec.fields.into_iter().map(|(name, kind)| (name, v1::FieldType::from(kind).into())).collect();
        Self {
            name: spec.name,
            dim: spec.dim,
            metric: v1::Metric::from(spec.metric).into(),
            shard_count: spec.shard_count,
            copies: spec.copies,
            read_replicas: spec.read_replicas,
            min_in_sync: spec.min_in_sync,
            embedder: spec.embedder,
            fields,
            pca_dim: spec.pca_dim,
            index: Some(spec.index.into()),
            hash_scheme: spec.hash_scheme.into(),
        }
    }
}

impl TryFrom<v1::CollectionSpec> for CollectionSpec {
    type Error = WireError;

    fn try_from(wire: v1::CollectionSpec) -> Result<Self, WireError> {
        let field = |(name, number)| match enum_field::<v1::FieldType, _>("type", number) {
            Ok(kind) => Ok((name, kind)),
            Err(error) => Err(error.within(format_args!("fields.{name}"))),
        };
        Ok(Self {
            name: wire.name,
            dim: wire.dim,
            metric: enum_field::<v1::Metric, _>("metric", wire.metric)?,
            shard_count: wire.shard_count,
            copies: wire.copies,
            read_replicas: wire.read_replicas,
            min_in_sync: wire.min_in_sync,
            embedder: wire.embedder,
            fields: wire.fields.into_iter().map(field).collect::<Result<_, _>>()?,
            pca_dim: wire.pca_dim,
            index: wire.index.ok_or_else(|| WireError::missing("index"))?.into(),
            hash_scheme: wire
                .hash_scheme
                .try_into()
                .map_err(|_| WireError::new("hash_scheme", format!("{} is no scheme", wire.hash_scheme)))?,
        })
    }
}

impl From<Collection> for v1::Collection {
    fn from(collection: Collection) -> Self {
        Self { id: collection.id.0, spec: Some(collection.spec.into()), epoch: collection.epoch }
    }
}

impl TryFrom<v1::Collection> for Collection {
    type Error = WireError;

    fn try_from(wire: v1::Collection) -> Result<Self, WireError> {
        Ok(Self { id: CollectionId(wire.id), spec: required("spec", wire.spec)?, epoch: wire.epoch })
    }
}

impl From<NodeRecord> for v1::NodeRecord {
    fn from(node: NodeRecord) -> Self {
        Self {
            id: node.id.0,
            rpc_address: node.rpc_address,
            http_address: node.http_address,
            zone: node.zone,
            weight: node.weight,
            is_data: node.is_data,
            incarnation: node.incarnation.0,
            liveness: v1::Liveness::from(node.liveness).into(),
            lifecycle: v1::NodeLifecycle::from(node.lifecycle).into(),
        }
    }
}

impl TryFrom<v1::NodeRecord> for NodeRecord {
    type Error = WireError;

    fn try_from(wire: v1::NodeRecord) -> Result<Self, WireError> {
        if wire.id == 0 {
            return Err(WireError::missing("id"));
        }
        Ok(Self {
            id: NodeId(wire.id),
            rpc_address: wire.rpc_address,
            http_address: wire.http_address,
            zone: wire.zone,
            weight: wire.weight,
            is_data: wire.is_data,
            incarnation: Incarnation(wire.incarnation),
            liveness: enum_field::<v1::Liveness, _>("liveness", wire.liveness)?,
            lifecycle: enum_field::<v1::NodeLifecycle, _>("lifecycle", wire.lifecycle)?,
        })
    }
}

/// A retired copy with its id.
struct KeyedRetired(CopyId, RetiredCopy);

impl From<KeyedRetired> for v1::RetiredCopy {
    fn from(KeyedRetired(copy, retired): KeyedRetired) -> Self {
        Self { copy_id: copy.0, shard: Some(retired.shard.into()), node: retired.node.0 }
    }
}

impl TryFrom<v1::RetiredCopy> for KeyedRetired {
    type Error = WireError;

    fn try_from(wire: v1::RetiredCopy) -> Result<Self, WireError> {
        let retired = RetiredCopy { shard: shard_id("shard", wire.shard)?, node: NodeId(wire.node) };
        Ok(Self(CopyId(wire.copy_id), retired))
    }
}

/// An audit record with its number.
struct NumberedAudit(u64, AuditRecord);

impl From<NumberedAudit> for v1::AuditRecord {
    fn from(NumberedAudit(number, record): NumberedAudit) -> Self {
        let seen = |(copy, last): (CopyId, LogPosition)| v1::SeenCopy { copy_id: copy.0, last: Some(last.into()) };
        Self {
            number,
            at_unix_ms: record.at_unix_ms,
            by: record.by,
            shard: Some(record.shard.into()),
            copy_id: record.copy.0,
            lineage: record.lineage.0,
            former_in_sync: record.former_in_sync.into_iter().map(|copy| copy.0).collect(),
            last_seen: record.last_seen.into_iter().map(seen).collect(),
            overrode_live: record.overrode_live,
        }
    }
}

impl TryFrom<v1::AuditRecord> for NumberedAudit {
    type Error = WireError;

    fn try_from(wire: v1::AuditRecord) -> Result<Self, WireError> {
        let seen = wire.last_seen.into_iter().map(|seen| (CopyId(seen.copy_id), seen.last.unwrap_or_default().into()));
        let record = AuditRecord {
            at_unix_ms: wire.at_unix_ms,
            by: wire.by,
            shard: shard_id("shard", wire.shard)?,
            copy: CopyId(wire.copy_id),
            lineage: Lineage(wire.lineage),
            former_in_sync: wire.former_in_sync.into_iter().map(CopyId).collect(),
            last_seen: keyed("last_seen", seen)?,
            overrode_live: wire.overrode_live,
        };
        Ok(Self(wire.number, record))
    }
}

impl From<ClusterState> for v1::ClusterState {
    fn from(state: ClusterState) -> Self {
        Self {
            cluster_id: state.cluster_id,
            version: state.version,
            feature_level: state.feature_level,
            nodes: to_wire(state.nodes.into_values()),
            collections: to_wire(state.collections.into_values()),
            shards: to_wire(state.shards.into_values()),
            retired: to_wire(state.retired.into_iter().map(|(copy, retired)| KeyedRetired(copy, retired))),
            next_collection: state.next_collection,
            next_copy: state.next_copy,
            audit: to_wire(state.audit.into_iter().map(|(number, record)| NumberedAudit(number, record))),
        }
    }
}

impl TryFrom<v1::ClusterState> for ClusterState {
    type Error = WireError;

    fn try_from(wire: v1::ClusterState) -> Result<Self, WireError> {
        let nodes: Vec<NodeRecord> = each("nodes", wire.nodes)?;
        let collections: Vec<Collection> = each("collections", wire.collections)?;
        let shards: Vec<ShardGroup> = each("shards", wire.shards)?;
        let retired: Vec<KeyedRetired> = each("retired", wire.retired)?;
        let audit: Vec<NumberedAudit> = each("audit", wire.audit)?;
        Ok(Self {
            cluster_id: wire.cluster_id,
            version: wire.version,
            feature_level: wire.feature_level,
            nodes: keyed("nodes", nodes.into_iter().map(|node| (node.id, node)))?,
            collections: keyed("collections", collections.into_iter().map(|collection| (collection.id, collection)))?,
            shards: keyed("shards", shards.into_iter().map(|group| (group.shard, group)))?,
            retired: keyed("retired", retired.into_iter().map(|KeyedRetired(copy, retired)| (copy, retired)))?,
            next_collection: wire.next_collection,
            next_copy: wire.next_copy,
            audit: keyed("audit", audit.into_iter().map(|NumberedAudit(number, record)| (number, record)))?,
        })
    }
}
