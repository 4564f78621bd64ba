//! Every conversion there and back, over generated values; and every refusal of a message that breaks its shape.

mod support;

use cluster_config::cluster_state::ClusterState;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{DocumentKey, OperationId};
use cluster_config::limits;
use cluster_config::operation::{LogEntry, Operation};
use cluster_config::search::{CopyPosition, NodeSearch, ShardQuery};
use cluster_config::seqno::LogPosition;
use proptest::prelude::*;
use prost::Message;
use proto::convert::operation::{decode_payload, encode_payload};
use proto::convert::search::{ShardReply, search_request};
use proto::convert::status::{RemoteError, code_of};
use proto::convert::{WireError, ids};
use proto::v1;
use tonic::{Code, Status};

/// Through the generated type *and* its bytes.
fn over_the_wire<W: Message + Default>(message: W) -> W {
    W::decode(message.encode_to_vec().as_slice()).expect("our own bytes decode")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn cluster_state(state in support::cluster_state()) {
        let wire: v1::ClusterState = over_the_wire(state.clone().into());
        prop_assert_eq!(wire.encode_to_vec(), v1::ClusterState::from(state.clone()).encode_to_vec());
        prop_assert_eq!(ClusterState::try_from(wire), Ok(state));
    }

    #[test]
    fn operations(operations in prop::collection::vec(support::operation(), 0..4)) {
        prop_assert_eq!(decode_payload(encode_payload(operations.clone())), Ok(operations));
    }

    #[test]
    fn log_entry(entry in support::log_entry()) {
        let wire: v1::LogEntry = over_the_wire(entry.clone().into());
        prop_assert_eq!(LogEntry::try_from(wire), Ok(entry));
    }

    #[test]
    fn a_changed_log_entry_is_corrupt(entry in support::log_entry(), field in 0usize..5, bit in any::<u64>()) {
        let mut wire = v1::LogEntry::from(entry);
        match field {
            0 => wire.seqno ^= 1 << (bit % 64),
            1 => wire.term ^= 1 << (bit % 64),
            2 => wire.crc32c ^= 1 << (bit % 32),
            3 if wire.operation_id.len() == 16 => wire.operation_id[(bit % 16) as usize] ^= 0x40,
            _ => {
                let mut bytes = wire.payload.to_vec();
                let position = bit as usize % (bytes.len() + 1);
                bytes.insert(position, 1);
                wire.payload = bytes.into();
            }
        }
        prop_assert_eq!(LogEntry::try_from(wire).map_err(|error| error.kind()), Err(ErrorKind::Corrupt));
    }

    #[test]
    fn node_search(search in support::node_search()) {
        let wire = over_the_wire(search_request(v1::Envelope::default(), search.clone()));
        prop_assert_eq!(NodeSearch::try_from(wire), Ok(search));
    }

    #[test]
    fn shard_reply(reply in support::shard_reply()) {
        let wire: v1::ShardResult = over_the_wire(reply.clone().into());
        prop_assert_eq!(ShardReply::try_from(wire), Ok(reply));
    }

    #[test]
    fn identities(target in support::copy_target(), position in support::copy_position(), key in support::document_key(),
                  id: u128, term: u64, seqno: u64) {
        prop_assert_eq!(ids::copy_target("target", Some(target.into())), Ok(target));
        prop_assert_eq!(CopyPosition::from(over_the_wire(v1::CopyPosition::from(position))), position);
        prop_assert_eq!(DocumentKey::try_from(v1::DocumentKey::from(key.clone())), Ok(key));
        prop_assert_eq!(ids::operation_id(&ids::operation_id_bytes(OperationId(id))), Ok(OperationId(id)));
        let wire = v1::LogPosition { term, seqno };
        prop_assert_eq!(v1::LogPosition::from(LogPosition::from(wire)), wire);
    }

    #[test]
    fn errors(error in support::remote_error()) {
        prop_assert_eq!(RemoteError::from(v1::ErrorDetail::from(error.clone())), error.clone());
        let status = Status::from(error.clone());
        prop_assert_eq!(status.code(), code_of(error.kind));
        prop_assert_eq!(RemoteError::from(status), error);
    }

    #[test]
    fn no_bytes_make_decoding_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), code in 0i32..20) {
        let _ = decode_payload(bytes.clone().into());
        if let Ok(wire) = v1::ClusterState::decode(bytes.as_slice()) {
            let _ = ClusterState::try_from(wire);
        }
        if let Ok(wire) = v1::SearchRequest::decode(bytes.as_slice()) {
            let _ = NodeSearch::try_from(wire);
        }
        let _ = RemoteError::from(Status::with_details(Code::from_i32(code), "x", bytes.into()));
    }
}

#[test]
fn every_kind_survives_a_status() {
    for kind in ErrorKind::ALL {
        let error = RemoteError::new(kind, "what went wrong").with_hint("what to do");
        assert_eq!(RemoteError::from(Status::from(error.clone())), error, "{kind}");
        assert_ne!(code_of(kind), Code::Ok, "{kind}");
    }
}

#[test]
fn a_status_that_no_service_made_says_what_to_do() {
    let broken_pipe = || Box::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
    let cases = [
        (Status::from_error(broken_pipe()), ErrorKind::Unavailable),
        (Status::from_error(Box::new(tonic::TimeoutExpired(()))), ErrorKind::DeadlineExceeded),
        (Status::cancelled("Timeout expired"), ErrorKind::DeadlineExceeded),
        (Status::cancelled("gone"), ErrorKind::Cancelled),
        (Status::unavailable("connection refused"), ErrorKind::Unavailable),
        (Status::unimplemented("an older node"), ErrorKind::Internal),
        (Status::unknown("?"), ErrorKind::Internal),
        (Status::with_details(Code::Aborted, "x", b"not a detail".to_vec().into()), ErrorKind::Conflict),
    ];
    for (status, kind) in cases {
        let shown = format!("{status:?}");
        assert_eq!(RemoteError::from(status).kind, kind, "{shown}");
    }
    let newer = v1::ErrorDetail { kind: "too_sleepy".into(), message: "m".into(), ..Default::default() };
    let status = Status::with_details(Code::Unavailable, "m", newer.encode_to_vec().into());
    assert_eq!(RemoteError::from(status), RemoteError::new(ErrorKind::Unavailable, "m"));
}

#[test]
fn long_errors_are_cut_to_fit_the_headers() {
    let error = RemoteError::new(ErrorKind::Internal, "é".repeat(100_000)).with_hint("h".repeat(100_000));
    let read = RemoteError::from(Status::from(error));
    assert!(read.message.len() <= limits::ERROR_TEXT_BYTES_MAX && read.message.starts_with('é'));
    assert_eq!(read.hint.len(), limits::ERROR_TEXT_BYTES_MAX);
}

#[test]
fn broken_shapes_are_named() {
    let key = || Some(v1::DocumentKey { tenant: "default".into(), document_id: "d".into() });
    let put = |chunks| v1::Operation {
        kind: Some(v1::operation::Kind::PutDocument(v1::PutDocument { key: key(), title: String::new(), chunks })),
    };
    let good = v1::Chunk { span_end: 3, vector: vec![0, 60].into(), ..Default::default() };
    assert!(Operation::try_from(put(vec![good.clone()])).is_ok());
    let odd = v1::Chunk { vector: vec![0].into(), ..good.clone() };
    let backwards = v1::Chunk { span_start: 4, ..good.clone() };
    let piece = v1::InstallGeneration { generation: 1, piece: 2, piece_count: 2, bytes: vec![] };
    let nobody = v1::DocumentKey { tenant: "default".into(), document_id: String::new() };
    let operations: [(v1::Operation, &str); 6] = [
        (v1::Operation { kind: None }, "kind"),
        (put(vec![]), "put_document.chunks"),
        (put(vec![good.clone(), odd]), "put_document.chunks[1].vector"),
        (put(vec![backwards]), "put_document.chunks[0].span_end"),
        (v1::Operation { kind: Some(v1::operation::Kind::InstallGeneration(piece)) }, "install_generation.piece"),
        (v1::Operation { kind: Some(v1::operation::Kind::DeleteDocument(nobody)) }, "delete_document.document_id"),
    ];
    for (wire, field) in operations {
        assert_eq!(Operation::try_from(wire).expect_err(field).field, field);
    }

    let query = || v1::ShardQuery { vector: vec![0.5], fetch_k: 10, tenant: "default".into(), ..Default::default() };
    type Break = (&'static str, fn(&mut v1::ShardQuery));
    let queries: [Break; 8] = [
        ("vector[1]", |query| query.vector.push(f32::NAN)),
        ("fetch_k", |query| query.fetch_k = 0),
        ("fetch_k", |query| query.fetch_k = limits::RESCORE_MAX + 1),
        ("tenant", |query| query.tenant.clear()),
        ("nprobe", |query| query.nprobe = Some(0)),
        ("oversample", |query| query.oversample = Some(f32::INFINITY)),
        ("target_recall", |query| query.target_recall = Some(f32::NAN)),
        ("filter.must[0].predicate", |query| {
            let condition = v1::Condition { field: "f".into(), predicate: None };
            query.filter = Some(v1::Filter { must: vec![condition], ..Default::default() });
        }),
    ];
    assert!(ShardQuery::try_from(query()).is_ok());
    for (field, break_it) in queries {
        let mut wire = query();
        break_it(&mut wire);
        assert_eq!(ShardQuery::try_from(wire).expect_err(field).field, field);
    }
}

#[test]
fn broken_states_are_named() {
    let base = || v1::ClusterState::from(support::sample_state());
    type Break = (&'static str, fn(&mut v1::ClusterState));
    let cases: [Break; 9] = [
        ("nodes", |state| state.nodes.push(state.nodes[0].clone())),
        ("shards", |state| state.shards.push(state.shards[0].clone())),
        ("nodes[0].id", |state| state.nodes[0].id = 0),
        ("nodes[0].liveness", |state| state.nodes[0].liveness = 0),
        ("shards[0].shard", |state| state.shards[0].shard = None),
        ("shards[0].copies[0].role", |state| state.shards[0].copies[0].role = 77),
        ("collections[0].spec.index", |state| spec(state).index = None),
        ("collections[0].spec.hash_scheme", |state| spec(state).hash_scheme = 65_537),
        ("collections[0].spec.fields.year.type", |state| spec(state).fields = [("year".into(), 99)].into()),
    ];
    assert!(ClusterState::try_from(base()).is_ok());
    for (field, break_it) in cases {
        let mut wire = base();
        break_it(&mut wire);
        let error: WireError = ClusterState::try_from(wire).expect_err(field);
        assert_eq!((error.field.as_str(), error.kind()), (field, ErrorKind::InvalidArgument));
    }
}

fn spec(state: &mut v1::ClusterState) -> &mut v1::CollectionSpec {
    state.collections[0].spec.as_mut().expect("a spec")
}

#[test]
fn an_operation_id_is_16_bytes_or_none() {
    assert_eq!(ids::operation_id(&[]), Ok(OperationId(0)));
    assert!(ids::operation_id(&[1]).is_err());
    assert!(ids::operation_id(&[1; 17]).is_err());
    assert_eq!(ids::operation_id_bytes(OperationId(0x0102)), [[0u8; 14].as_slice(), &[1, 2]].concat());
}
