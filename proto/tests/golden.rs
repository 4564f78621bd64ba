//! Bytes that were once written must be read for ever. Each file under `golden/` holds one message, in hexadecimal.
//!
//! A format that changes gets a *new* file beside the old one, whose test stays. To see the bytes of today:
//! `GOLDEN_PRINT=1 cargo test -p proto --test golden -- --nocapture`.

mod support;

use cluster_config::cluster_state::ClusterState;
use cluster_config::operation::LogEntry;
use cluster_config::search::NodeSearch;
use prost::Message;
use proto::convert::operation::entry_crc32c;
use proto::convert::search::search_request;
use proto::v1;

fn bytes_of(hexadecimal: &str) -> Vec<u8> {
    let digits: Vec<u8> = hexadecimal.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ascii"), 16).expect("digits");
    digits.chunks(2).map(byte).collect()
}

/// The kept bytes decode, and today's encoder still writes them.
fn check<W: Message + Default + PartialEq + std::fmt::Debug>(name: &str, kept: &str, today: W) -> W {
    let encoded = today.encode_to_vec();
    if std::env::var_os("GOLDEN_PRINT").is_some() {
        let digits: Vec<String> = encoded.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("== {name}");
        digits.chunks(32).for_each(|line| println!("{}", line.concat()));
    }
    let decoded = W::decode(bytes_of(kept).as_slice()).expect("kept bytes decode");
    assert_eq!(decoded, today, "{name}: the kept bytes mean what they meant");
    assert_eq!(encoded, bytes_of(kept), "{name}: written differently now; keep this file and add one for the new form");
    decoded
}

#[test]
fn cluster_state() {
    let kept = include_str!("golden/cluster_state_1.hex");
    let wire = check("cluster_state_1", kept, v1::ClusterState::from(support::sample_state()));
    let state = ClusterState::try_from(wire).expect("converts");
    assert_eq!(state, support::sample_state());
    assert_eq!(state.check(), Ok(()));
}

#[test]
fn log_entry() {
    let kept = include_str!("golden/log_entry_1.hex");
    let wire = check("log_entry_1", kept, v1::LogEntry::from(support::sample_entry()));
    assert_eq!(LogEntry::try_from(wire), Ok(support::sample_entry()));
}

#[test]
fn search_request_of_a_session() {
    let envelope = v1::Envelope { cluster_id: "dev".into(), to_node: 2, from_incarnation: 0, from_node: 0 };
    let kept = include_str!("golden/search_request_1.hex");
    let wire = check("search_request_1", kept, search_request(envelope, support::sample_search()));
    assert_eq!(NodeSearch::try_from(wire), Ok(support::sample_search()));
}

/// Computed with an independent bit-by-bit CRC-32C, so that the table-driven one cannot drift on any machine.
#[test]
fn the_checksum_of_an_entry_is_what_the_proto_file_says() {
    let bit_by_bit = |bytes: &[u8]| {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
        })
    };
    assert_eq!(bit_by_bit(b"123456789"), 0xe306_9283, "the check value of CRC-32C");
    let entry = support::sample_entry();
    let payload = b"any payload";
    let mut bytes = entry.seqno.0.to_be_bytes().to_vec();
    bytes.extend(entry.term.0.to_be_bytes());
    bytes.extend(entry.operation_id.0.to_be_bytes());
    bytes.extend(payload);
    assert_eq!(entry_crc32c(entry.seqno, entry.term, entry.operation_id, payload), bit_by_bit(&bytes));
}
