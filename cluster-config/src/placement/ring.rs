//! The hash ring that proposes an order of nodes for each shard.
//!
//! `consistent_hash` builds and walks the ring; the bytes that are hashed are ours (see [`RingKey`]), because the crate's default
//! goes through `std::hash`, which promises no stability between versions or machines. A ring is built, walked and dropped in
//! one function, since the crate refers to its own nodes by address.

use std::hash::{Hash, Hasher};

use consistent_hash::{Node, RingHash, StaticHashRing};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::ids::{NodeId, ShardId};

/// Places on the ring of a node of weight 100. At 128 the shares of the hash range differ by about a tenth, which the quotas even out.
const PLACES_PER_SHARE: usize = 128;

/// "susui-p1".
pub(super) const RING_SEED: u64 = 0x7375_7375_692d_7031;

/// Bytes that are hashed as they are: `vn\0` and the node id, or `shard\0` and the shard id, numbers big-endian.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RingKey(pub(super) Vec<u8>);

impl RingKey {
    pub(super) fn of_node(node: NodeId) -> Self {
        Self([b"vn\0".as_slice(), &node.0.to_be_bytes()].concat())
    }

    pub(super) fn of_shard(shard: ShardId) -> Self {
        Self([b"shard\0".as_slice(), &shard.collection.0.to_be_bytes(), &shard.index.to_be_bytes()].concat())
    }
}

impl Hash for RingKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

/// Collects what a key writes; nothing but whole byte strings is ever written to it.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Hasher for Bytes {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn finish(&self) -> u64 {
        xxh3_64_with_seed(&self.0, RING_SEED)
    }
}

struct ByteExact;

impl RingHash for ByteExact {
    fn hash_item<T: Hash>(&self, item: &T) -> u64 {
        let mut bytes = Bytes::default();
        item.hash(&mut bytes);
        bytes.finish()
    }

    /// The place's number is appended as a little-endian u32; the trait's default would hash a tuple with a `usize`.
    fn hash_vnode<K: Hash>(&self, node_key: &K, vnode_seq: usize) -> u64 {
        let mut bytes = Bytes::default();
        node_key.hash(&mut bytes);
        bytes.write(&(vnode_seq as u32).to_le_bytes());
        bytes.finish()
    }
}

/// How many places a node of that weight has; at least one.
pub(super) fn places(weight: u32) -> usize {
    (PLACES_PER_SHARE * weight as usize / 100).max(1)
}

/// For each shard all nodes, as positions in `nodes`, in the order the ring prefers them.
pub(super) fn preferences(nodes: &[(NodeId, u32)], shards: &[ShardId]) -> Vec<Vec<usize>> {
    let ring_nodes = nodes.iter().enumerate().map(|(position, (node, weight))| Node {
        key: RingKey::of_node(*node),
        value: position,
        quantity: places(*weight),
    });
    let ring = StaticHashRing::new(ByteExact, ring_nodes);
    shards
        .iter()
        .map(|shard| ring.calc_candidates(&RingKey::of_shard(*shard)).map(|node| node.value).collect())
        .collect()
}
