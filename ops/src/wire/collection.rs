//! Collections, as they are asked for and as they are.

use std::collections::BTreeMap;

use cluster_config::collection::{FieldType, IndexSpec, Metric};
use serde::{Deserialize, Serialize};

/// Body of `PUT /api/v1/collections/{c}`. What is left out is chosen by the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CollectionRequest {
    /// Dimension; may be left out with an embedder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dim: Option<u32>,
    /// How vectors are compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// Number of shards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<u32>,
    /// Voting copies per shard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copies: Option<u32>,
    /// Further copies that only serve reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_replicas: Option<u32>,
    /// Fewest in-sync copies with which writes are accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_in_sync: Option<u32>,
    /// Model that embeds texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedder: Option<String>,
    /// Fields that filters may name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, FieldType>,
    /// Dimension after PCA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pca_dim: Option<u32>,
    /// Index settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<IndexRequest>,
}

/// Index settings of a new collection; as [`IndexSpec`], but everything may be left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "as IndexSpec")]
pub struct IndexRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nlist: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub m: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbits: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nprobe: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oversample: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training_floor: Option<u32>,
}

/// A collection as the cluster answers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as CollectionSpec")]
pub struct CollectionInfo {
    pub name: String,
    pub dim: u32,
    pub metric: Metric,
    pub shards: u32,
    pub copies: u32,
    #[serde(default)]
    pub read_replicas: u32,
    #[serde(default)]
    pub min_in_sync: u32,
    #[serde(default)]
    pub embedder: Option<String>,
    #[serde(default)]
    pub fields: BTreeMap<String, FieldType>,
    #[serde(default)]
    pub pca_dim: Option<u32>,
    #[serde(default)]
    pub index: IndexSpec,
}

/// Answer of `GET /api/v1/collections`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CollectionList {
    /// By name.
    pub collections: Vec<CollectionInfo>,
}

/// Answer of `DELETE /api/v1/collections/{c}`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Deleted {
    /// Whether it was there.
    pub existed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_left_out_of_a_collection_is_not_sent() {
        let request = CollectionRequest { dim: Some(3), ..CollectionRequest::default() };
        assert_eq!(serde_json::to_value(request).expect("plain"), json!({"dim": 3}));
    }
}
