//! The name of a row as it lies beside its vector in the mapped file, so that naming a hit touches memory that scoring it has just
//! touched, and no database.
//!
//! Layout: length of the document id plus one, u8; ordinal, u32 little-endian; the id; zeros. 0 in the first byte: the name does not
//! fit (or the row is gone), and is read from RocksDB, which is the truth in any case.

use super::records::RowHead;

/// Bytes of a label: one cache line. Ids of up to 59 bytes fit, such as UUIDs and most paths.
pub(crate) const LABEL_BYTES: usize = 64;
const HEADER_BYTES: usize = 1 + 4;

/// The label of a row.
pub(crate) fn encode(head: &RowHead) -> [u8; LABEL_BYTES] {
    let mut label = [0; LABEL_BYTES];
    let id = head.document_id.as_bytes();
    if let Some(place) = label[HEADER_BYTES..].get_mut(..id.len()) {
        place.copy_from_slice(id);
        label[0] = id.len() as u8 + 1;
        label[1..HEADER_BYTES].copy_from_slice(&head.ordinal.to_le_bytes());
    }
    label
}

/// Document id and ordinal; `None` where RocksDB must be asked.
pub(crate) fn decode(label: &[u8]) -> Option<(&str, u32)> {
    let (header, rest) = label.split_first_chunk::<HEADER_BYTES>()?;
    let id = rest.get(..usize::from(header[0].checked_sub(1)?))?;
    let ordinal = u32::from_le_bytes(header[1..].try_into().ok()?);
    Some((str::from_utf8(id).ok()?, ordinal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_fit_are_kept_and_others_are_left_to_the_database() {
        let longest = "é".repeat(29) + "x";
        assert_eq!(longest.len(), LABEL_BYTES - HEADER_BYTES);
        for (id, fits) in [("", true), ("a", true), (longest.as_str(), true), (&format!("{longest}y"), false)] {
            for ordinal in [0, u32::MAX] {
                let label = encode(&RowHead { tenant: "t".into(), document_id: id.into(), ordinal });
                assert_eq!(decode(&label), fits.then_some((id, ordinal)), "{id:?}");
            }
        }
        assert_eq!(decode(&[0; LABEL_BYTES]), None, "the place of a row that is gone");
        assert_eq!(decode(&[u8::MAX; LABEL_BYTES]), None, "longer than a label");
    }
}
