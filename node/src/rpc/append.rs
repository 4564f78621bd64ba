//! `Append` between its words and its wire form. It lives here and not in `proto` because an [`EncodedEntry`] is the node's own:
//! bytes that are forwarded unread.

use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, Incarnation, NodeId};
use cluster_config::search::CopyPosition;
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use cluster_config::shard_group::CopyTarget;
use proto::convert::ids::copy_target;
use proto::v1;
use proto::v1::append_refusal::Reason;

use crate::error::Error;
use crate::replication::{Append, AppendOutcome, AppendRefusal, AppendResult};
use crate::shard::operation::EncodedEntry;

/// The request that carries `append`.
pub(super) fn append_to_wire(envelope: v1::Envelope, append: Append) -> v1::AppendRequest {
    let target = CopyTarget {
        shard: append.shard,
        copy: append.to_copy,
        lineage: append.lineage,
        cfg_version: append.cfg_version,
    };
    v1::AppendRequest {
        envelope: Some(envelope),
        target: Some(target.into()),
        from_copy: append.from_copy.0,
        term: append.term.0,
        prev: Some(append.prev.into()),
        entries: append.entries.into_iter().map(v1::LogEntry::from).collect(),
        global_checkpoint: append.global_checkpoint.0,
        log_start: append.log_start.0,
        age_ms: append.age_ms,
    }
}

/// Reads an append. Errors: `InvalidArgument` naming the field.
pub(super) fn append_from_wire(wire: v1::AppendRequest) -> Result<Append, Error> {
    let target = copy_target("target", wire.target)?;
    let entries = wire.entries.into_iter().map(EncodedEntry::try_from).collect::<Result<Vec<_>, _>>();
    Ok(Append {
        shard: target.shard,
        to_copy: target.copy,
        from_copy: CopyId(wire.from_copy),
        lineage: target.lineage,
        term: PrimaryTerm(wire.term),
        cfg_version: target.cfg_version,
        prev: wire.prev.unwrap_or_default().into(),
        entries: entries.map_err(|error| Error::new(ErrorKind::Corrupt, error.to_string()))?,
        global_checkpoint: SeqNo(wire.global_checkpoint),
        log_start: SeqNo(wire.log_start),
        age_ms: wire.age_ms,
    })
}

/// The reply that carries `result`.
pub(super) fn result_to_wire(result: AppendResult, position: CopyPosition) -> v1::AppendReply {
    let position = CopyPosition { copy: result.copy, applied: result.applied, ..position };
    let outcome = match result.outcome {
        AppendOutcome::Match(seqno) => v1::append_reply::Outcome::MatchSeqno(seqno.0),
        AppendOutcome::Refused(refusal) => {
            let (reason, hint) = match refusal {
                AppendRefusal::StaleTerm => (Reason::StaleTerm, None),
                AppendRefusal::Mismatch { hint } => (Reason::Mismatch, Some(hint.into())),
                AppendRefusal::UnknownCopy => (Reason::UnknownCopy, None),
                AppendRefusal::Lineage => (Reason::Lineage, None),
                AppendRefusal::Corrupt => (Reason::Corrupt, None),
                AppendRefusal::Busy => (Reason::Busy, None),
                AppendRefusal::NeedsSnapshot => (Reason::NeedsSnapshot, None),
            };
            v1::append_reply::Outcome::Refusal(v1::AppendRefusal { reason: reason.into(), hint })
        }
    };
    v1::AppendReply {
        position: Some(position.into()),
        term: result.term.0,
        incarnation: result.incarnation.0,
        pinned: result.pinned.map_or(0, |from| from.0),
        outcome: Some(outcome),
    }
}

/// Reads a reply. Errors: `Internal` where it says nothing; `node` names who answered.
pub(super) fn result_from_wire(node: NodeId, wire: v1::AppendReply) -> Result<AppendResult, Error> {
    let position = wire.position.map(CopyPosition::from).unwrap_or_default();
    let outcome = match wire.outcome {
        Some(v1::append_reply::Outcome::MatchSeqno(seqno)) => AppendOutcome::Match(SeqNo(seqno)),
        Some(v1::append_reply::Outcome::Refusal(refusal)) => AppendOutcome::Refused(match refusal.reason() {
            Reason::StaleTerm => AppendRefusal::StaleTerm,
            Reason::Mismatch => AppendRefusal::Mismatch { hint: refusal.hint.unwrap_or_default().into() },
            Reason::UnknownCopy => AppendRefusal::UnknownCopy,
            Reason::Lineage => AppendRefusal::Lineage,
            Reason::Corrupt => AppendRefusal::Corrupt,
            Reason::NeedsSnapshot => AppendRefusal::NeedsSnapshot,
            Reason::Busy | Reason::Unspecified => AppendRefusal::Busy,
        }),
        None => return Err(Error::new(ErrorKind::Internal, format!("node {node} answered an append with nothing"))),
    };
    Ok(AppendResult {
        copy: position.copy,
        incarnation: Incarnation(wire.incarnation),
        term: PrimaryTerm(wire.term),
        applied: position.applied,
        pinned: Some(SeqNo(wire.pinned)).filter(|from| *from != SeqNo::ZERO),
        outcome,
    })
}
