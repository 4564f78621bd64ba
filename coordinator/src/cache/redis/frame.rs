//! A value as it lies in Redis: mark and version, kind, key, checksum, payload. What does not fit in every part is not ours, and is a
//! miss: a foreign value, another version's, another key's, a cut or damaged one.

use xxhash_rust::xxh3::xxh3_64;

use crate::cache::key::CacheKey;
use crate::cache::metrics::Kind;

/// Mark and version; the version is raised when any payload changes its meaning.
const MARK: [u8; 4] = *b"SUc1";
const KEY_AT: usize = MARK.len() + 1;
const SUM_AT: usize = KEY_AT + 32;
/// Bytes before the payload.
pub(super) const HEAD_BYTES: usize = SUM_AT + 8;

fn tag(kind: Kind) -> u8 {
    match kind {
        Kind::Retrieval => 1,
        Kind::Embedding => 2,
        Kind::Answer => 3,
    }
}

/// The value to store.
pub(super) fn seal(kind: Kind, key: &CacheKey, payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEAD_BYTES + payload.len());
    value.extend_from_slice(&MARK);
    value.push(tag(kind));
    value.extend_from_slice(&key.0);
    value.extend_from_slice(&xxh3_64(payload).to_le_bytes());
    value.extend_from_slice(payload);
    value
}

/// The payload of a value that was sealed for this kind and key.
pub(super) fn unseal(kind: Kind, key: &CacheKey, mut value: Vec<u8>) -> Option<Vec<u8>> {
    let (head, payload) = value.split_at_checked(HEAD_BYTES)?;
    let is_ours = head[..MARK.len()] == MARK
        && head[MARK.len()] == tag(kind)
        && head[KEY_AT..SUM_AT] == key.0
        && head[SUM_AT..] == xxh3_64(payload).to_le_bytes();
    is_ours.then(|| value.split_off(HEAD_BYTES))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn only_the_very_value_is_read(payload in proptest::collection::vec(any::<u8>(), 0..100), at in any::<prop::sample::Index>(), bit in 0u32..8) {
            let key = CacheKey::of_embedding("m", "t");
            let value = seal(Kind::Retrieval, &key, &payload);
            prop_assert_eq!(unseal(Kind::Retrieval, &key, value.clone()), Some(payload));
            prop_assert_eq!(unseal(Kind::Answer, &key, value.clone()), None);
            prop_assert_eq!(unseal(Kind::Retrieval, &CacheKey::of_embedding("m", "u"), value.clone()), None);
            let mut damaged = value.clone();
            damaged[at.index(value.len())] ^= 1 << bit;
            prop_assert_eq!(unseal(Kind::Retrieval, &key, damaged), None);
            prop_assert_eq!(unseal(Kind::Retrieval, &key, value[..at.index(value.len())].to_vec()), None);
        }

        #[test]
        fn any_bytes_are_a_miss(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(unseal(Kind::Answer, &CacheKey::of_embedding("m", "t"), bytes), None);
        }
    }
}
