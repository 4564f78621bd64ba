//! Values of the small records, as stored: one format byte, then postcard. A changed record takes a new format byte and reads
//! the old one ([`AppliedState::decode`] does): a node that is replaced by a newer build keeps its copies.

use cluster_config::ids::OperationId;
use cluster_config::search::EffortRung;
use cluster_config::seqno::LogPosition;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::replication::storage::StorageError;

/// Format of every record but [`AppliedState`].
const FORMAT: u8 = 1;

/// Format of [`AppliedState`]: 2 added `installed_row_end` and `renewal`.
const APPLIED_FORMAT: u8 = 2;

/// Everything `apply` counts. Written in the same batch as its effects, so it is never ahead of or behind them.
///
/// Invariants: `indexed_row_end <= row_end`; `rows_live <= row_end`; `indexed_row_end` is 0 while `generation` is 0; a generation is
/// only renewed where there is one, by a later one, which has indexed less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AppliedState {
    /// Last applied entry.
    pub(crate) position: LogPosition,
    /// Rows given out.
    pub(crate) row_end: u64,
    /// Rows that are neither replaced nor deleted.
    pub(crate) rows_live: u64,
    /// Documents that exist.
    pub(crate) document_count: u64,
    /// Installed generation; 0: none.
    pub(crate) generation: u64,
    /// Rows below this are in the index, if they were live when it reached them.
    pub(crate) indexed_row_end: u64,
    /// Rows given out when the generation was installed.
    pub(crate) installed_row_end: u64,
    /// The generation that will take the place of the installed one.
    pub(crate) renewal: Option<Renewal>,
}

/// [`AppliedState`] in format 1.
#[derive(Deserialize)]
struct AppliedStateV1 {
    position: LogPosition,
    row_end: u64,
    rows_live: u64,
    document_count: u64,
    generation: u64,
    indexed_row_end: u64,
}

/// A generation that is installed, but not searched: its index grows beside the one that serves until it holds as much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Renewal {
    pub(crate) generation: u64,
    /// Rows below this are in its index.
    pub(crate) indexed_row_end: u64,
    /// Rows given out when it was installed.
    pub(crate) installed_row_end: u64,
}

impl AppliedState {
    /// The latest generation installed, whether it serves or not; 0: none.
    pub(crate) fn newest_generation(&self) -> u64 {
        self.renewal.map_or(self.generation, |renewal| renewal.generation)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        encode_as(APPLIED_FORMAT, self)
    }

    /// Reads this format, and format 1, whose builds neither renewed a generation nor remembered when they installed it: its rows
    /// at the time are taken for as many as are indexed now, so that growth from here on is noticed.
    pub(crate) fn decode(value: &[u8]) -> Result<Self, StorageError> {
        const WHAT: &str = "applied state";
        match value.split_first() {
            Some((&APPLIED_FORMAT, rest)) => decode_body(WHAT, rest),
            Some((&FORMAT, rest)) => {
                let AppliedStateV1 { position, row_end, rows_live, document_count, generation, indexed_row_end } =
                    decode_body(WHAT, rest)?;
                Ok(Self {
                    position,
                    row_end,
                    rows_live,
                    document_count,
                    generation,
                    indexed_row_end,
                    installed_row_end: indexed_row_end,
                    renewal: None,
                })
            }
            _ => Err(unknown_format(WHAT, value)),
        }
    }

    /// Names the broken invariant.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.indexed_row_end > self.row_end || self.rows_live > self.row_end {
            return Err(format!("row counts contradict each other: {self:?}"));
        }
        if self.generation == 0 && self.indexed_row_end != 0 {
            return Err(format!("rows are indexed without a generation: {self:?}"));
        }
        if let Some(renewal) = self.renewal
            && (self.generation == 0
                || renewal.generation <= self.generation
                || renewal.indexed_row_end >= self.indexed_row_end)
        {
            return Err(format!("a renewal that does not renew: {self:?}"));
        }
        if self.document_count > self.rows_live {
            return Err(format!("more documents than live rows: {self:?}"));
        }
        Ok(())
    }
}

/// A document: its rows are contiguous, because one operation gave them out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DocumentRecord {
    pub(crate) title: String,
    pub(crate) row_start: u64,
    pub(crate) chunk_count: u32,
    /// Entry that put it.
    pub(crate) seqno: u64,
}

impl DocumentRecord {
    pub(crate) fn rows(&self) -> std::ops::Range<u64> {
        self.row_start..self.row_start + u64::from(self.chunk_count)
    }
}

/// Whose a row is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RowHead {
    pub(crate) tenant: String,
    pub(crate) document_id: String,
    pub(crate) ordinal: u32,
}

/// What a row says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RowBody {
    pub(crate) title: String,
    pub(crate) text: String,
    pub(crate) metadata_json: String,
    pub(crate) span_start: u64,
    pub(crate) span_end: u64,
}

/// What each effort finds in the index of a generation, as logged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct EffortCurve {
    pub(crate) generation: u64,
    /// Measured on the rows below this.
    pub(crate) row_end: u64,
    pub(crate) rungs: Vec<EffortRung>,
}

/// A generation whose pieces are arriving in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PendingGeneration {
    pub(crate) generation: u64,
    pub(crate) next_piece: u32,
    pub(crate) piece_count: u32,
}

/// What the persisted index is, written after its pieces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IndexStamp {
    pub(crate) slot: u8,
    pub(crate) generation: u64,
    /// The index holds the steps up to this row.
    pub(crate) indexed_row_end: u64,
    pub(crate) piece_count: u32,
}

/// Encodes a record.
pub(crate) fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    encode_as(FORMAT, record)
}

fn encode_as<T: Serialize>(format: u8, record: &T) -> Vec<u8> {
    // Records are plain structs of numbers and strings: postcard has no way to fail on them when writing to a Vec.
    postcard::to_extend(record, vec![format]).expect("plain records always encode")
}

/// Decodes a record. `what` names it in the error.
pub(crate) fn decode<T: DeserializeOwned>(what: &str, value: &[u8]) -> Result<T, StorageError> {
    match value.split_first() {
        Some((&FORMAT, rest)) => decode_body(what, rest),
        _ => Err(unknown_format(what, value)),
    }
}

fn decode_body<T: DeserializeOwned>(what: &str, body: &[u8]) -> Result<T, StorageError> {
    postcard::from_bytes(body).map_err(|error| corrupt(what, &error.to_string()))
}

fn unknown_format(what: &str, value: &[u8]) -> StorageError {
    let problem = value.first().map_or_else(|| "empty".into(), |format| format!("unknown format {format}"));
    corrupt(what, &problem)
}

/// Encodes a bare number.
pub(crate) fn encode_u64(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// Decodes a bare number.
pub(crate) fn decode_u64(what: &str, value: &[u8]) -> Result<u64, StorageError> {
    value.try_into().map(u64::from_be_bytes).map_err(|_| corrupt(what, "not 8 bytes"))
}

/// Decodes an operation id.
pub(crate) fn decode_operation_id(value: &[u8]) -> Result<OperationId, StorageError> {
    let bytes = value.try_into().map_err(|_| corrupt("operation id", "not 16 bytes"))?;
    Ok(OperationId(u128::from_be_bytes(bytes)))
}

pub(crate) fn corrupt(what: &str, problem: &str) -> StorageError {
    StorageError::Corrupt(format!("{what}: {problem}"))
}

#[cfg(test)]
mod tests {
    use cluster_config::seqno::{PrimaryTerm, SeqNo};

    use super::*;

    fn applied() -> AppliedState {
        AppliedState {
            position: LogPosition { term: PrimaryTerm(2), seqno: SeqNo(300) },
            row_end: 10,
            rows_live: 9,
            document_count: 4,
            generation: 1,
            indexed_row_end: 8,
            installed_row_end: 5,
            renewal: Some(Renewal { generation: 2, indexed_row_end: 3, installed_row_end: 7 }),
        }
    }

    #[test]
    fn golden_records() {
        assert_eq!(applied().encode(), [2, 2, 172, 2, 10, 9, 4, 1, 8, 5, 1, 2, 3, 7]);
        let document = DocumentRecord { title: "t".into(), row_start: 3, chunk_count: 2, seqno: 7 };
        assert_eq!(encode(&document), [1, 1, b't', 3, 2, 7]);
        assert_eq!(document.rows(), 3..5);
        let head = RowHead { tenant: "a".into(), document_id: "b".into(), ordinal: 1 };
        assert_eq!(encode(&head), [1, 1, b'a', 1, b'b', 1]);
        let body =
            RowBody { title: "t".into(), text: "x".into(), metadata_json: "{}".into(), span_start: 0, span_end: 1 };
        assert_eq!(encode(&body), [1, 1, b't', 1, b'x', 2, b'{', b'}', 0, 1]);
        let rungs = vec![EffortRung { nprobe: 3, oversample: 1.0, recall: 0.5, codes_share: 0.25 }];
        let curve = EffortCurve { generation: 1, row_end: 2, rungs };
        assert_eq!(encode(&curve), [1, 1, 2, 1, 3, 0, 0, 128, 63, 0, 0, 0, 63, 0, 0, 128, 62]);
        let pending = PendingGeneration { generation: 1, next_piece: 2, piece_count: 3 };
        assert_eq!(encode(&pending), [1, 1, 2, 3]);
        let stamp = IndexStamp { slot: 1, generation: 2, indexed_row_end: 3, piece_count: 4 };
        assert_eq!(encode(&stamp), [1, 1, 2, 3, 4]);
        assert_eq!(AppliedState::decode(&applied().encode()), Ok(applied()));
    }

    #[test]
    fn an_applied_state_of_format_1_is_read() {
        let old = AppliedState { installed_row_end: 8, renewal: None, ..applied() };
        assert_eq!(AppliedState::decode(&[1, 2, 172, 2, 10, 9, 4, 1, 8]), Ok(old));
        assert_eq!(AppliedState::decode(&[1, 0, 0, 0, 0, 0, 0, 0]), Ok(AppliedState::default()));
    }

    #[test]
    fn damaged_records_are_corrupt_not_default() {
        for value in [&[][..], &[3, 1][..], &[2, 1][..], &[1][..]] {
            assert!(matches!(AppliedState::decode(value), Err(StorageError::Corrupt(_))), "{value:?}");
            assert!(matches!(decode::<IndexStamp>("stamp", value), Err(StorageError::Corrupt(_))), "{value:?}");
        }
    }

    #[test]
    fn contradictions_are_named() {
        assert_eq!(applied().check(), Ok(()));
        assert!(AppliedState { indexed_row_end: 11, ..applied() }.check().is_err());
        assert!(AppliedState { generation: 0, renewal: None, ..applied() }.check().is_err());
        let renewed = |generation, indexed_row_end| {
            let renewal = Some(Renewal { generation, indexed_row_end, installed_row_end: 7 });
            AppliedState { renewal, ..applied() }.check()
        };
        assert_eq!(renewed(2, 7), Ok(()));
        assert!(renewed(1, 7).is_err(), "no later one");
        assert!(renewed(2, 8).is_err(), "it holds as much and should serve");
        assert!(AppliedState { document_count: 10, ..applied() }.check().is_err());
    }
}
