//! Which shard a document belongs to. Every process computes it; all must agree for ever, so the bytes are spelt out.
//!
//! Scheme 1: `h = XXH3-64(seed, collection id, length of tenant, tenant, length of document id, document id)`, every number a
//! big-endian u64, then `shard = h * shard_count / 2^64`. The lengths keep ("ab", "c") and ("a", "bc") apart. The product maps
//! the hash range onto equal slices in order, so that doubling the number of shards splits each into exactly two.
//!
//! `std::hash` is not used: it promises no stability, and writes numbers in the machine's byte order.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::collection::Collection;
use crate::ids::{CollectionId, DocumentKey, ShardId};

/// The hash scheme of new collections.
pub const HASH_SCHEME_CURRENT: u16 = 1;

/// "susui-r1", so that no other use of XXH3 over the same bytes gives related values.
const ROUTING_SEED: u64 = 0x7375_7375_692d_7231;

/// A collection that was hashed by a newer build. Nothing of it may be read or written by this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hash scheme {0} is unknown to this build, which knows {HASH_SCHEME_CURRENT}")]
pub struct UnknownHashScheme(pub u16);

/// The shard that holds `key`. Errors: the collection was hashed by a newer build.
pub fn shard_of(collection: &Collection, key: &DocumentKey) -> Result<ShardId, UnknownHashScheme> {
    if collection.spec.hash_scheme != HASH_SCHEME_CURRENT {
        return Err(UnknownHashScheme(collection.spec.hash_scheme));
    }
    let index = shard_index(routing_hash(collection.id, key), collection.spec.shard_count);
    Ok(ShardId { collection: collection.id, index })
}

/// The position of a document in the hash range, by scheme 1.
pub fn routing_hash(collection: CollectionId, key: &DocumentKey) -> u64 {
    let mut bytes = Vec::with_capacity(24 + key.tenant.len() + key.document_id.len());
    bytes.extend(collection.0.to_be_bytes());
    for part in [&key.tenant, &key.document_id] {
        bytes.extend((part.len() as u64).to_be_bytes());
        bytes.extend(part.as_bytes());
    }
    xxh3_64_with_seed(&bytes, ROUTING_SEED)
}

/// The slice of the hash range that `hash` falls into, in `0..shard_count`; 0 where there are no shards.
pub fn shard_index(hash: u64, shard_count: u32) -> u32 {
    // A product of 64 and 32 bits, shifted down by 64: always below `shard_count`, so it fits.
    ((u128::from(hash) * u128::from(shard_count)) >> 64) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::collection::CollectionSpec;

    fn key(tenant: &str, document_id: &str) -> DocumentKey {
        DocumentKey { tenant: tenant.into(), document_id: document_id.into() }
    }

    #[test]
    fn the_hash_is_the_published_xxh3() {
        assert_eq!(xxh3_64_with_seed(b"", 0), 0x2d06_8005_38d3_94c2, "published value of XXH3-64 of nothing");
    }

    /// Values of the first build, confirmed with the C library. A change here loses every document that was ever stored.
    #[test]
    fn golden_values() {
        let long = "x".repeat(64 * 1024);
        let cases: [(u64, &str, &str, u64, u32); 9] = [
            (1, "default", "a", 0x45ea_0dab_61a7_c915, 4),
            (1, "default", "", 0xe31b_0c2b_f0a9_f077, 14),
            (1, "", "", 0x847d_51da_14a3_67c7, 8),
            (0, "", "", 0x267b_dd70_780c_196a, 2),
            (2, "default", "a", 0xaca6_2925_42f5_c30d, 10),
            (1, "acme", "a", 0x55e4_db44_78b5_2645, 5),
            (1, "default", "ключ #7 \u{1F980}", 0xa799_15d4_6969_c170, 10),
            (u64::MAX, "default", "0192e4a0-0000-7000-8000-000000000001", 0x0052_3c42_259c_33f1, 0),
            (1, "default", "64 KiB", 0x7a48_a50d_0c72_d30b, 7),
        ];
        for (collection, tenant, id, hash, index) in cases {
            let id = if id == "64 KiB" { &long } else { id };
            let computed = routing_hash(CollectionId(collection), &key(tenant, id));
            let shown = &id[..id.len().min(20)];
            assert_eq!(
                (computed, shard_index(computed, 16)),
                (hash, index),
                "({collection}, {tenant:?}, {shown:?}) -> {computed:#018x}, {}",
                shard_index(computed, 16)
            );
        }
    }

    #[test]
    fn a_newer_scheme_is_refused() {
        let mut collection = Collection { id: CollectionId(1), spec: CollectionSpec::new("c", 8), epoch: 0 };
        assert!(shard_of(&collection, &key("default", "d")).is_ok());
        collection.spec.hash_scheme = 2;
        assert_eq!(shard_of(&collection, &key("default", "d")), Err(UnknownHashScheme(2)));
    }

    #[test]
    fn documents_spread_evenly() {
        let mut counts = [0u32; 16];
        for number in 0..16_000 {
            let hash = routing_hash(CollectionId(1), &key("default", &format!("doc-{number}")));
            counts[shard_index(hash, 16) as usize] += 1;
        }
        // 1000 expected, standard deviation 31: five of them.
        assert!(counts.iter().all(|count| (845..=1155).contains(count)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn an_index_is_within_its_collection(hash: u64, shard_count in 1u32..) {
            prop_assert!(shard_index(hash, shard_count) < shard_count);
        }

        #[test]
        fn doubling_splits_each_shard_in_two(hash: u64, shard_count in 1u32..=u32::MAX / 2) {
            prop_assert_eq!(shard_index(hash, 2 * shard_count) / 2, shard_index(hash, shard_count));
        }

        #[test]
        fn moving_a_character_between_the_parts_changes_the_hash(text in "[a-z]{2,12}", cut in 1usize..11) {
            let cut = cut.min(text.len() - 1);
            let (one, other) = (key(&text[..cut], &text[cut..]), key(&text[..cut - 1], &text[cut - 1..]));
            prop_assert_ne!(routing_hash(CollectionId(1), &one), routing_hash(CollectionId(1), &other));
            prop_assert_ne!(routing_hash(CollectionId(1), &one), routing_hash(CollectionId(2), &one));
        }
    }
}
