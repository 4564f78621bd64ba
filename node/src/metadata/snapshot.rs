//! The state machine as one checked blob: what a voter that fell behind the log is sent, and what bounds the log.
//!
//! Layout: CRC-32C (big-endian) of the rest, then the encoded body. It is kept in the metadata database, so that installing one
//! and replacing the state is a single synced write.

use cluster_config::cluster_state::ClusterState;
use cluster_config::ids::NodeId;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::codec::{decode, encode};
use super::state::State;
use super::types::{SnapshotData, SnapshotMeta};

const CHECKSUM_BYTES: usize = 4;

#[derive(Serialize, Deserialize)]
struct Body<'a> {
    meta: Cow<'a, SnapshotMeta>,
    cluster: Cow<'a, ClusterState>,
    registrations: Cow<'a, BTreeMap<NodeId, String>>,
}

/// Encodes a snapshot of `state` as of `meta`.
pub(crate) fn pack(meta: &SnapshotMeta, state: &State) -> io::Result<SnapshotData> {
    let body = encode(&Body {
        meta: Cow::Borrowed(meta),
        cluster: Cow::Borrowed(&state.cluster),
        registrations: Cow::Borrowed(&state.registrations),
    })?;
    let mut bytes = Vec::with_capacity(CHECKSUM_BYTES + body.len());
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_be_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes.into())
}

/// Checks and decodes a snapshot. Errors: `InvalidData` for a damaged one, or one of another cluster (openraft#1892).
pub(crate) fn unpack(bytes: &[u8], cluster_id: &str) -> io::Result<(SnapshotMeta, State)> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let Some((checksum, body)) = bytes.split_first_chunk::<CHECKSUM_BYTES>() else {
        return Err(invalid("the metadata snapshot is cut off".into()));
    };
    if crc32c::crc32c(body) != u32::from_be_bytes(*checksum) {
        return Err(invalid("the metadata snapshot fails its checksum".into()));
    }
    let body: Body<'static> = decode(body)?;
    if body.cluster.cluster_id != cluster_id {
        return Err(invalid(format!("a snapshot of cluster {:?}, this is {cluster_id:?}", body.cluster.cluster_id)));
    }
    let state = State { cluster: Arc::new(body.cluster.into_owned()), registrations: body.registrations.into_owned() };
    Ok((body.meta.into_owned(), state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_and_foreign_clusters_are_noticed() {
        let state = State::empty("c");
        let bytes = pack(&SnapshotMeta::default(), &state).expect("packs");
        assert_eq!(unpack(&bytes, "c").expect("unpacks").1, state);
        assert!(unpack(&bytes, "d").is_err());
        assert!(unpack(&bytes[..3], "c").is_err());
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1;
            assert!(unpack(&damaged, "c").is_err(), "flipped bit in byte {at}");
        }
    }
}
