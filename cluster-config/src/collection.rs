//! What a collection is: dimensions, metric, shards, copies and index settings, with their ranges.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;
use crate::ids::{CollectionId, check_collection_name};
use crate::limits;
use crate::routing::HASH_SCHEME_CURRENT;

/// How two vectors are compared. The wire carries a score: larger is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Cosine similarity in -1..=1. Vectors are stored with unit length; the index works on L2 behind a centred PCA.
    #[default]
    Cosine,
    /// Squared Euclidean distance `d`, as score `1 / (1 + d)`.
    L2,
    /// Inner product, unbounded.
    Dot,
}

/// Type of a declared metadata field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldType {
    /// Text compared as a whole.
    Keyword,
    /// 64-bit signed integer.
    Integer,
    /// 64-bit float.
    Float,
    /// true or false.
    Bool,
    /// A point in time to the millisecond: RFC 3339 text, a date, or milliseconds since 1970.
    Datetime,
    /// Values of any kind, without an index. Stands only behind [`UNDECLARED_FIELDS`].
    Scan,
}

/// Name in place of all fields that are not declared: a collection that gives it the type [`FieldType::Scan`] lets filters name them, for the
/// price of reading the metadata of each chunk that the rest of the filter leaves.
pub const UNDECLARED_FIELDS: &str = "*";

impl FieldType {
    /// What a value of the type looks like, for hints.
    pub fn expected(self) -> &'static str {
        match self {
            FieldType::Keyword => "keyword: a text",
            FieldType::Integer => "integer: a whole number within 64 bits",
            FieldType::Float => "float: a finite number",
            FieldType::Bool => "bool: true or false",
            FieldType::Datetime => "datetime: as \"2024-05-01T12:00:00Z\", \"2024-05-01\", or milliseconds since 1970",
            FieldType::Scan => "scan: any value",
        }
    }
}

/// Index settings. `None` means "chosen by the shard from its size"; the chosen values are reported by `susui status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IndexSpec {
    /// Lists of the inverted file.
    pub nlist: Option<u32>,
    /// Sub-quantisers; must divide the (reduced) dimension.
    pub m: Option<u32>,
    /// Bits per sub-quantiser code: 4 (fast-scan) or 8 (the classic PQ).
    pub nbits: u32,
    /// Lists probed per query.
    pub nprobe: Option<u32>,
    /// Candidates re-scored exactly per requested result.
    pub oversample: f32,
    /// Live rows in a shard below which it searches exactly.
    pub training_floor: u32,
}

impl Default for IndexSpec {
    fn default() -> Self {
        Self { nlist: None, m: None, nbits: 4, nprobe: None, oversample: 10.0, training_floor: 10_000 }
    }
}

/// A collection as its creator asked for it. Immutable once created.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CollectionSpec {
    /// Unique name.
    pub name: String,
    /// Dimension of the original embeddings.
    pub dim: u32,
    /// How vectors are compared.
    pub metric: Metric,
    /// Number of shards; fixed, because it is part of the routing.
    pub shard_count: u32,
    /// Voting copies of each shard.
    pub copies: u32,
    /// Further copies that only serve reads.
    pub read_replicas: u32,
    /// Fewest in-sync copies with which writes are accepted.
    pub min_in_sync: u32,
    /// Model that embeds texts; without one a text query is refused.
    pub embedder: Option<String>,
    /// Metadata fields that filters may name.
    pub fields: BTreeMap<String, FieldType>,
    /// Dimension after PCA; `None` keeps all dimensions.
    pub pca_dim: Option<u32>,
    /// Index settings.
    pub index: IndexSpec,
    /// Hash scheme of [`crate::routing`], stored so that it can never drift.
    pub hash_scheme: u16,
}

/// Copies of a shard where the creator names no number.
pub const COPIES_DEFAULT: u32 = 2;
/// Shards where the creator names no number.
pub const SHARDS_DEFAULT: u32 = 4;

/// `min_in_sync` where the creator names none: 1 up to two copies (availability, with the count in each acknowledgement), else 2.
pub fn default_min_in_sync(copies: u32) -> u32 {
    if copies <= 2 { 1 } else { 2 }
}

/// PCA dimension where the creator names none: half the original, at most 192, and none for narrow vectors, where it saves
/// little. 192 of 384 kept recall@10 at 0.99 on 50,000 MiniLM vectors, with 96 sub-quantisers of 4 bits.
pub fn default_pca_dim(dim: u32) -> Option<u32> {
    let reduced = (dim / 2).min(192);
    (dim >= 64).then_some(reduced - reduced % 2)
}

impl CollectionSpec {
    /// A spec with defaults for everything but name and dimension.
    pub fn new(name: impl Into<String>, dim: u32) -> Self {
        Self {
            name: name.into(),
            dim,
            metric: Metric::default(),
            shard_count: SHARDS_DEFAULT,
            copies: COPIES_DEFAULT,
            read_replicas: 0,
            min_in_sync: default_min_in_sync(COPIES_DEFAULT),
            embedder: None,
            fields: BTreeMap::new(),
            pca_dim: default_pca_dim(dim),
            index: IndexSpec::default(),
            hash_scheme: HASH_SCHEME_CURRENT,
        }
    }

    /// Dimension of the vectors the index sees.
    pub fn reduced_dim(&self) -> u32 {
        self.pca_dim.unwrap_or(self.dim)
    }

    /// Sub-quantisers: as asked, else one per two dimensions, or one per dimension where their number is odd.
    pub fn sub_quantisers(&self) -> u32 {
        let reduced = self.reduced_dim();
        self.index.m.unwrap_or(if reduced.is_multiple_of(2) { reduced / 2 } else { reduced })
    }

    /// Checks every range. Errors name the field as the HTTP body spells it.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_collection_name(&self.name)
            .map_err(|error| ConfigError::new("name", error.to_string(), "choose another name"))?;
        in_range("dim", self.dim, 1, limits::DIM_MAX)?;
        in_range("shards", self.shard_count, 1, limits::SHARDS_MAX)?;
        in_range("copies", self.copies, 1, limits::COPIES_MAX)?;
        in_range("read_replicas", self.read_replicas, 0, limits::READ_REPLICAS_MAX)?;
        in_range("min_in_sync", self.min_in_sync, 1, self.copies)?;
        if let Some(pca_dim) = self.pca_dim {
            in_range("pca_dim", pca_dim, 1, self.dim)?;
        }
        if self.hash_scheme != HASH_SCHEME_CURRENT {
            return Err(ConfigError::new(
                "hash_scheme",
                format!("unknown scheme {}", self.hash_scheme),
                format!("this build knows scheme {HASH_SCHEME_CURRENT}"),
            ));
        }
        self.validate_fields()?;
        self.validate_index()
    }

    /// The type of a field that a filter may name.
    pub fn filter_type(&self, field: &str) -> Option<FieldType> {
        let declared = self.fields.get(field).filter(|_| field != UNDECLARED_FIELDS);
        declared.or_else(|| self.fields.get(UNDECLARED_FIELDS)).copied()
    }

    /// Fields with an index, and their types.
    pub fn indexed_fields(&self) -> impl Iterator<Item = (&str, FieldType)> {
        let fields = self.fields.iter().map(|(name, field_type)| (name.as_str(), *field_type));
        fields.filter(|(_, field_type)| *field_type != FieldType::Scan)
    }

    fn validate_fields(&self) -> Result<(), ConfigError> {
        if self.fields.len() > limits::FIELDS_MAX {
            return Err(ConfigError::new(
                "fields",
                format!("{} fields declared", self.fields.len()),
                format!("declare at most {}", limits::FIELDS_MAX),
            ));
        }
        for (name, field_type) in &self.fields {
            if (name == UNDECLARED_FIELDS) != (*field_type == FieldType::Scan) {
                return Err(ConfigError::new(
                    format!("fields.{name}"),
                    format!("{name:?} cannot be of this type"),
                    "declare \"*\": \"scan\" to filter by undeclared fields; any other field has a type of its own",
                ));
            }
            if name == UNDECLARED_FIELDS {
                continue;
            }
            let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.is_empty() || name.len() > limits::FIELD_NAME_BYTES_MAX || !name.chars().all(allowed) {
                return Err(ConfigError::new(
                    format!("fields.{name}"),
                    "not a field name",
                    format!("use 1 to {} of A-Z, a-z, 0-9 and _", limits::FIELD_NAME_BYTES_MAX),
                ));
            }
        }
        Ok(())
    }

    fn validate_index(&self) -> Result<(), ConfigError> {
        let index = &self.index;
        if let Some(nlist) = index.nlist {
            in_range("index.nlist", nlist, 1, 65_536)?;
        }
        if let Some(nprobe) = index.nprobe {
            in_range("index.nprobe", nprobe, 1, index.nlist.unwrap_or(65_536))?;
        }
        if index.nbits != 4 && index.nbits != 8 {
            return Err(ConfigError::new("index.nbits", format!("{} is not supported", index.nbits), "use 4 or 8"));
        }
        if !(1.0..=limits::OVERSAMPLE_MAX).contains(&index.oversample) {
            return Err(ConfigError::new(
                "index.oversample",
                format!("{} is out of range", index.oversample),
                format!("use 1 to {}", limits::OVERSAMPLE_MAX),
            ));
        }
        in_range("index.training_floor", index.training_floor, 1000, 10_000_000)?;
        let (m, reduced) = (self.sub_quantisers(), self.reduced_dim());
        if m == 0 || reduced % m != 0 {
            return Err(ConfigError::new(
                "index.m",
                format!("{m} does not divide the reduced dimension {reduced}"),
                "choose a divisor of pca_dim (or of dim where there is no PCA)",
            ));
        }
        Ok(())
    }
}

fn in_range(key: &str, value: u32, min: u32, max: u32) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::new(key, format!("{value} is out of range"), format!("use {min} to {max}")))
}

/// A collection as the cluster holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Collection {
    /// Allotted by the metadata group.
    pub id: CollectionId,
    /// As asked for.
    pub spec: CollectionSpec,
    /// Raised when cached results of the collection must not be used any more.
    pub epoch: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_for_common_dimensions() {
        for dim in [1, 2, 3, 8, 63, 64, 100, 384, 385, 768, 1024, 1536, 3072, 4096] {
            let spec = CollectionSpec::new("c", dim);
            assert_eq!(spec.validate(), Ok(()), "dim {dim}");
        }
    }

    #[test]
    fn the_parameters_of_the_guide_can_be_set() {
        let mut spec = CollectionSpec::new("guide", 768);
        spec.pca_dim = Some(256);
        spec.index = IndexSpec { nlist: Some(100), m: Some(8), nbits: 8, nprobe: Some(10), ..IndexSpec::default() };
        assert_eq!(spec.validate(), Ok(()));
    }

    #[test]
    fn each_broken_field_is_named() {
        let base = || CollectionSpec::new("c", 384);
        type Break = (&'static str, fn(&mut CollectionSpec));
        let cases: [Break; 14] = [
            ("name", |s| s.name = "No".into()),
            ("dim", |s| s.dim = 0),
            ("dim", |s| s.dim = 4097),
            ("shards", |s| s.shard_count = 0),
            ("copies", |s| s.copies = 8),
            ("min_in_sync", |s| s.min_in_sync = 3),
            ("pca_dim", |s| s.pca_dim = Some(385)),
            ("index.nbits", |s| s.index.nbits = 5),
            ("index.m", |s| s.index.m = Some(7)),
            ("index.oversample", |s| s.index.oversample = f32::NAN),
            ("index.nprobe", |s| s.index.nprobe = Some(0)),
            ("fields.a b", |s| s.fields = [("a b".into(), FieldType::Bool)].into()),
            ("fields.*", |s| s.fields = [("*".into(), FieldType::Bool)].into()),
            ("fields.a", |s| s.fields = [("a".into(), FieldType::Scan)].into()),
        ];
        for (key, break_it) in cases {
            let mut spec = base();
            break_it(&mut spec);
            assert_eq!(spec.validate().expect_err(key).key, key);
        }
    }
}
