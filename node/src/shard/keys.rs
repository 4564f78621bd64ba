//! The only place that knows key bytes. Tags are never reused; numbers are big-endian so that byte order is numeric order.
//!
//! | family | key | value |
//! |---|---|---|
//! | meta | see [`MetaKey`] | records |
//! | log | seqno | stored entry |
//! | docs | 1 row / 2 row | head / body of the row |
//! | documents | tenant 0 document id | document record |
//! | vectors | row | f16 |
//! | reduced | generation row | f16 after PCA |
//! | filters | see [`BitmapKey`], then row >> 16 | roaring bitmap of the rows' low 32 bits |
//! | tombstones | row | reclaimed or not |
//! | dedup | 1 operation id / 2 seqno | seqno / operation id |
//! | index | 1 generation piece / 2 slot piece / 3 | bytes of the generation / of the index / stamp |

use cluster_config::collection::FieldType;
use cluster_config::datetime;
use cluster_config::filter::FieldValue;
use cluster_config::ids::OperationId;
use cluster_config::seqno::SeqNo;

/// Rows that share one stored bitmap: one roaring container, so that adding a row rewrites at most 8 KiB.
pub(crate) const ROWS_PER_BITMAP_BITS: u32 = 16;

/// Column families, by the names of the design.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Meta,
    Log,
    Docs,
    Documents,
    Vectors,
    Reduced,
    Filters,
    Tombstones,
    Dedup,
    Index,
}

impl Family {
    pub(crate) const ALL: [Family; 10] = [
        Family::Meta,
        Family::Log,
        Family::Docs,
        Family::Documents,
        Family::Vectors,
        Family::Reduced,
        Family::Filters,
        Family::Tombstones,
        Family::Dedup,
        Family::Index,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Family::Meta => "meta",
            Family::Log => "log",
            Family::Docs => "docs",
            Family::Documents => "documents",
            Family::Vectors => "vectors",
            Family::Reduced => "reduced",
            Family::Filters => "filters",
            Family::Tombstones => "tombstones",
            Family::Dedup => "dedup",
            Family::Index => "index",
        }
    }
}

/// Keys of the `meta` family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetaKey {
    /// Which copy of which shard this is.
    Identity,
    /// Highest term adopted.
    CurrentTerm,
    /// Log position up to which entries are gone.
    Purged,
    /// Everything that `apply` counts, written with each applied batch.
    Applied,
    /// First seqno of each term in the log.
    TermStart(SeqNo),
    /// A generation whose pieces are still arriving.
    PendingGeneration,
    /// One applied `IndexUpTo`: its first row, within a generation.
    IndexStep { generation: u64, row_start: u64 },
    /// What each effort finds in the index that serves.
    EffortCurve,
}

impl MetaKey {
    pub(crate) fn encode(self) -> Vec<u8> {
        match self {
            MetaKey::Identity => vec![1],
            MetaKey::CurrentTerm => vec![2],
            MetaKey::Purged => vec![3],
            MetaKey::Applied => vec![4],
            MetaKey::TermStart(seqno) => numbered(5, &[seqno.0]),
            MetaKey::PendingGeneration => vec![6],
            MetaKey::IndexStep { generation, row_start } => numbered(7, &[generation, row_start]),
            MetaKey::EffortCurve => vec![8],
        }
    }
}

/// Bounds of all term starts.
pub(crate) fn term_starts() -> (Vec<u8>, Vec<u8>) {
    (vec![5], vec![6])
}

/// Bounds of the index steps of one generation.
pub(crate) fn index_steps(generation: u64) -> (Vec<u8>, Vec<u8>) {
    (numbered(7, &[generation]), numbered(7, &[generation + 1]))
}

/// Key of an entry.
pub(crate) fn log(seqno: SeqNo) -> [u8; 8] {
    seqno.0.to_be_bytes()
}

/// Bounds of all entries.
pub(crate) fn whole_log() -> (Vec<u8>, Vec<u8>) {
    (Vec::new(), vec![u8::MAX; 9])
}

/// Key by row, in `vectors` and `tombstones`.
pub(crate) fn row(row: u64) -> [u8; 8] {
    row.to_be_bytes()
}

/// Key of a row's identity; it outlives the row, so that a search that began earlier can still name its hits.
pub(crate) fn row_head(row: u64) -> Vec<u8> {
    numbered(1, &[row])
}

/// Key of a row's text and metadata.
pub(crate) fn row_body(row: u64) -> Vec<u8> {
    numbered(2, &[row])
}

/// Key of a row's reduced vector.
pub(crate) fn reduced(generation: u64, row: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&generation.to_be_bytes());
    key[8..].copy_from_slice(&row.to_be_bytes());
    key
}

/// Bounds of all reduced vectors of a generation.
pub(crate) fn reduced_of(generation: u64) -> (Vec<u8>, Vec<u8>) {
    (generation.to_be_bytes().to_vec(), (generation + 1).to_be_bytes().to_vec())
}

/// Key of a document. Names have no control characters (`DocumentKey`), so the 0 ends the tenant and keeps the order.
pub(crate) fn document(tenant: &str, document_id: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(tenant.len() + 1 + document_id.len());
    key.extend_from_slice(tenant.as_bytes());
    key.push(0);
    key.extend_from_slice(document_id.as_bytes());
    key
}

/// Bounds of all documents of a tenant.
pub(crate) fn documents_of(tenant: &str) -> (Vec<u8>, Vec<u8>) {
    let start = document(tenant, "");
    let mut end = start.clone();
    end.pop();
    end.push(1);
    (start, end)
}

/// Tenant and document id of a key. `None`: not a document key.
pub(crate) fn parse_document(key: &[u8]) -> Option<(&str, &str)> {
    let split = key.iter().position(|byte| *byte == 0)?;
    Some((std::str::from_utf8(&key[..split]).ok()?, std::str::from_utf8(&key[split + 1..]).ok()?))
}

/// Where an operation id was applied.
pub(crate) fn dedup_id(id: OperationId) -> Vec<u8> {
    let mut key = vec![1];
    key.extend_from_slice(&id.0.to_be_bytes());
    key
}

/// Which operation id an applied entry carried.
pub(crate) fn dedup_seqno(seqno: SeqNo) -> Vec<u8> {
    numbered(2, &[seqno.0])
}

/// One piece of a model generation.
pub(crate) fn generation_piece(generation: u64, piece: u32) -> Vec<u8> {
    let mut key = numbered(1, &[generation]);
    key.extend_from_slice(&piece.to_be_bytes());
    key
}

/// Bounds of the pieces of one generation.
pub(crate) fn generation_pieces(generation: u64) -> (Vec<u8>, Vec<u8>) {
    (numbered(1, &[generation]), numbered(1, &[generation + 1]))
}

/// One piece of the persisted index. Two slots alternate, so that the stamped one stays whole while the other is written.
pub(crate) fn index_piece(slot: u8, piece: u32) -> Vec<u8> {
    let mut key = vec![2, slot];
    key.extend_from_slice(&piece.to_be_bytes());
    key
}

/// Bounds of one slot of the persisted index.
pub(crate) fn index_slot(slot: u8) -> (Vec<u8>, Vec<u8>) {
    (vec![2, slot], vec![2, slot + 1])
}

/// Which slot holds the index, and at what.
pub(crate) fn index_stamp() -> Vec<u8> {
    vec![3]
}

/// A set of rows in the `filters` family, without the part that selects 65,536 rows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BitmapKey<'a> {
    /// Rows whose field has the value.
    Value { field: &'a str, value: &'a [u8] },
    /// Rows that have the field.
    Exists { field: &'a str },
    /// Rows of the tenant.
    Tenant { tenant: &'a str },
}

impl BitmapKey<'_> {
    /// Bytes before the chunk number. No such prefix is a prefix of another one.
    pub(crate) fn prefix(&self) -> Vec<u8> {
        let mut key = Vec::new();
        match self {
            BitmapKey::Value { field, value } => {
                key.extend_from_slice(&value_prefix(field));
                key.extend_from_slice(value);
            }
            BitmapKey::Exists { field } => {
                key.push(2);
                key.extend_from_slice(field.as_bytes());
                key.push(0);
            }
            BitmapKey::Tenant { tenant } => {
                key.push(3);
                key.extend_from_slice(tenant.as_bytes());
                key.push(0);
            }
        }
        key
    }
}

/// Bytes before the value of a field. Field names have no 0.
pub(crate) fn value_prefix(field: &str) -> Vec<u8> {
    let mut key = vec![1];
    key.extend_from_slice(field.as_bytes());
    key.push(0);
    key
}

/// Bounds of all tenants' bitmaps.
pub(crate) fn tenant_bitmaps() -> (Vec<u8>, Vec<u8>) {
    (vec![3], vec![4])
}

/// The tenant of a key among [`tenant_bitmaps`].
pub(crate) fn parse_tenant_bitmap(key: &[u8]) -> Option<&str> {
    let end = key.len().checked_sub(9)?;
    std::str::from_utf8(key.get(1..end)?).ok()
}

/// The full key of 65,536 rows of a set.
pub(crate) fn bitmap_chunk(prefix: &[u8], chunk: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(prefix.len() + 8);
    key.extend_from_slice(prefix);
    key.extend_from_slice(&chunk.to_be_bytes());
    key
}

/// The chunk number at the end of a bitmap key.
pub(crate) fn parse_bitmap_chunk(key: &[u8]) -> Option<u64> {
    let tail = key.get(key.len().checked_sub(8)?..)?;
    Some(u64::from_be_bytes(tail.try_into().ok()?))
}

/// A value as bytes that order as the values do, self-terminated. `None`: the value does not fit the type.
pub(crate) fn value(field_type: FieldType, value: &FieldValue) -> Option<Vec<u8>> {
    match (field_type, value) {
        (FieldType::Bool, FieldValue::Bool(value)) => Some(vec![u8::from(*value)]),
        (FieldType::Integer, FieldValue::Integer(value)) => Some(ordered_integer(*value)),
        (FieldType::Float, FieldValue::Float(value)) if value.is_finite() => Some(ordered_float(*value)),
        (FieldType::Float, FieldValue::Integer(value)) => Some(ordered_float(*value as f64)),
        (FieldType::Keyword, FieldValue::Keyword(value)) => Some(ordered_text(value)),
        (FieldType::Datetime, FieldValue::Integer(unix_ms)) => Some(ordered_integer(*unix_ms)),
        (FieldType::Datetime, FieldValue::Keyword(text)) => datetime::unix_ms(text).map(ordered_integer),
        _ => None,
    }
}

fn ordered_integer(value: i64) -> Vec<u8> {
    ((value as u64) ^ (1 << 63)).to_be_bytes().to_vec()
}

/// Negative numbers with all bits inverted, others with the sign bit set: byte order is numeric order. -0 counts as 0.
fn ordered_float(value: f64) -> Vec<u8> {
    let bits = (if value == 0.0 { 0.0 } else { value }).to_bits();
    let ordered = if bits >> 63 == 1 { !bits } else { bits | (1 << 63) };
    ordered.to_be_bytes().to_vec()
}

/// 0 becomes 0 255, the end is 0 1: no text's bytes are a prefix of another's, and the order stays.
fn ordered_text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() + 2);
    for byte in text.bytes() {
        bytes.push(byte);
        if byte == 0 {
            bytes.push(255);
        }
    }
    bytes.extend_from_slice(&[0, 1]);
    bytes
}

/// The smallest byte string after every string that begins with `prefix`. `None`: there is none.
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

/// Number in the last 8 bytes of a key, as in `row`, `reduced`, `row_head` and index steps.
pub(crate) fn parse_last_number(key: &[u8]) -> Option<u64> {
    parse_bitmap_chunk(key)
}

fn numbered(tag: u8, numbers: &[u64]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + 8 * numbers.len());
    key.push(tag);
    for number in numbers {
        key.extend_from_slice(&number.to_be_bytes());
    }
    key
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_keys() {
        assert_eq!(MetaKey::Identity.encode(), [1]);
        assert_eq!(MetaKey::CurrentTerm.encode(), [2]);
        assert_eq!(MetaKey::Purged.encode(), [3]);
        assert_eq!(MetaKey::Applied.encode(), [4]);
        assert_eq!(MetaKey::TermStart(SeqNo(258)).encode(), [5, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(MetaKey::PendingGeneration.encode(), [6]);
        assert_eq!(
            MetaKey::IndexStep { generation: 1, row_start: 2 }.encode(),
            [7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]
        );
        assert_eq!(MetaKey::EffortCurve.encode(), [8]);
        assert_eq!(log(SeqNo(1)), [0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(row(256), [0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(row_head(1), [1, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(row_body(1), [2, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(reduced(1, 2), [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(document("t", "d"), *b"t\0d");
        assert_eq!(dedup_id(OperationId(1)), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(dedup_seqno(SeqNo(1)), [2, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(generation_piece(1, 2), [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(index_piece(1, 2), [2, 1, 0, 0, 0, 2]);
        assert_eq!(index_stamp(), [3]);
        assert_eq!(BitmapKey::Value { field: "f", value: &[9] }.prefix(), [1, b'f', 0, 9]);
        assert_eq!(BitmapKey::Exists { field: "f" }.prefix(), [2, b'f', 0]);
        assert_eq!(BitmapKey::Tenant { tenant: "t" }.prefix(), [3, b't', 0]);
        assert_eq!(bitmap_chunk(&[7], 1), [7, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(value(FieldType::Bool, &FieldValue::Bool(true)), Some(vec![1]));
        assert_eq!(
            value(FieldType::Integer, &FieldValue::Integer(-1)),
            Some(vec![127, 255, 255, 255, 255, 255, 255, 255])
        );
        assert_eq!(value(FieldType::Float, &FieldValue::Integer(1)), Some(vec![0xbf, 0xf0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(value(FieldType::Keyword, &FieldValue::Keyword("a\0".into())), Some(vec![b'a', 0, 255, 0, 1]));
        assert_eq!(value(FieldType::Integer, &FieldValue::Keyword("a".into())), None);
        let (text, ms) = (FieldValue::Keyword("1970-01-01T00:00:00.001Z".into()), FieldValue::Integer(1));
        assert_eq!(value(FieldType::Datetime, &text), Some(vec![128, 0, 0, 0, 0, 0, 0, 1]));
        assert_eq!(value(FieldType::Datetime, &ms), value(FieldType::Datetime, &text));
        let names: Vec<&str> = Family::ALL.iter().map(|family| family.name()).collect();
        let design =
            ["meta", "log", "docs", "documents", "vectors", "reduced", "filters", "tombstones", "dedup", "index"];
        assert_eq!(names, design);
    }

    #[test]
    fn keys_are_read_back() {
        let tenant = BitmapKey::Tenant { tenant: "acme" }.prefix();
        let key = bitmap_chunk(&tenant, 7);
        assert_eq!(parse_tenant_bitmap(&key), Some("acme"));
        assert_eq!(parse_bitmap_chunk(&key), Some(7));
        assert_eq!(parse_document(&document("t", "d/1")), Some(("t", "d/1")));
        let (start, end) = documents_of("t");
        assert!(start <= document("t", "a") && document("t", "\u{10ffff}") < end);
        assert!(end <= document("t\u{1}", "") && document("s", "z") < start);
        assert_eq!(after_prefix(&[1, 255]), Some(vec![2]));
        assert_eq!(after_prefix(&[255]), None);
    }

    proptest! {
        #[test]
        fn values_order_as_their_bytes(a: i64, b: i64, x in -1e300..1e300f64, y in -1e300..1e300f64, s: String, t: String) {
            let integer = |v: i64| value(FieldType::Integer, &FieldValue::Integer(v)).expect("fits");
            let float = |v: f64| value(FieldType::Float, &FieldValue::Float(v)).expect("fits");
            let text = |v: &str| value(FieldType::Keyword, &FieldValue::Keyword(v.into())).expect("fits");
            prop_assert_eq!(integer(a).cmp(&integer(b)), a.cmp(&b));
            prop_assert_eq!(Some(float(x).cmp(&float(y))), x.partial_cmp(&y));
            prop_assert_eq!(text(&s).cmp(&text(&t)), s.cmp(&t));
            prop_assert!(s == t || !text(&s).starts_with(&text(&t)));
        }
    }
}
