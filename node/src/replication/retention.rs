//! How much of the log a copy keeps, and for whom.
//!
//! An entry may go once it is applied here, once every member of the ack set holds it, and once no other copy needs it; copies
//! outside of the ack set are waited for only up to a cap, since one that is gone for good would hold the log for ever. A copy whose
//! missing entries are gone needs a snapshot; while it fetches one, a *pin* keeps what follows the snapshot, whatever the cap says. The
//! newest entries stay although nobody needs them, so that a copy that comes back, or comes new to a small shard, needs no snapshot.

use std::collections::{BTreeMap, VecDeque};
#[cfg(test)]
use std::hash::{Hash, Hasher};

use cluster_config::limits::{LOG_KEPT_AGE_MAX, LOG_KEPT_BYTES_MAX, LOG_KEPT_BYTES_MIN, LOG_PINS_MAX};
use cluster_config::seqno::SeqNo;

use super::storage::LogWrite;

/// The log goes in pieces of this share of the caps: each purge costs a synced write.
const PIECES_PER_CAP: u64 = 64;
/// What an entry takes besides its payload, about: its key, term, operation id and checksum.
const ENTRY_OVERHEAD_BYTES: u64 = 48;

/// How much of the log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The newest entries of this size always stay.
    pub bytes_min: u64,
    /// A log that is larger does not wait for copies outside of the ack set.
    pub bytes_max: u64,
    /// Entries that are older do not wait for copies outside of the ack set.
    pub age_max_ms: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            bytes_min: LOG_KEPT_BYTES_MIN,
            bytes_max: LOG_KEPT_BYTES_MAX,
            age_max_ms: LOG_KEPT_AGE_MAX.as_millis() as u64,
        }
    }
}

/// Who still needs the log; `None` where nobody of that kind is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// Applied here: what lies beyond has not taken effect yet.
    pub(super) applied: SeqNo,
    /// What every member of the ack set holds.
    pub(super) ack_set: Option<SeqNo>,
    /// What every other copy holds that the log can still help.
    pub(super) lagging: Option<SeqNo>,
    /// First entry that follows a snapshot on its way.
    pub(super) pinned: Option<SeqNo>,
}

/// Sizes and ages along the log.
#[derive(Clone, Debug)]
pub(super) struct LogSizes {
    retention: Retention,
    /// In order, without gaps: each begins after the end of the one before.
    pieces: VecDeque<Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    end: SeqNo,
    bytes: u64,
    began_ms: u64,
}

impl LogSizes {
    /// A log found on disk: entries after `purged` up to `last`, `bytes` in all. How old they are is not known; they count as new.
    pub(super) fn new(retention: Retention, purged: SeqNo, last: SeqNo, bytes: u64) -> Self {
        let entries = last.0 - purged.0;
        let count = (bytes / (retention.bytes_max / PIECES_PER_CAP).max(1) + 1).min(entries);
        let end = |piece: u64| SeqNo(purged.0 + (u128::from(entries) * u128::from(piece) / u128::from(count)) as u64);
        let pieces = (1..=count).map(|piece| Piece { end: end(piece), bytes: bytes / count, began_ms: 0 }).collect();
        Self { retention, pieces }
    }

    /// Follows a change of the log.
    pub(super) fn record(&mut self, write: &LogWrite, now_ms: u64) {
        if let Some(cut) = write.truncate_from {
            let last = SeqNo(cut.0 - 1);
            while self.pieces.len() > 1 && self.pieces[self.pieces.len() - 2].end >= last {
                self.pieces.pop_back();
            }
            if let Some(piece) = self.pieces.back_mut() {
                piece.end = piece.end.min(last);
            }
        }
        for entry in &write.entries {
            let bytes = entry.payload.len() as u64 + ENTRY_OVERHEAD_BYTES;
            match self.pieces.back_mut().filter(|piece| !is_full(piece, &self.retention, now_ms)) {
                Some(piece) => {
                    piece.end = entry.seqno;
                    piece.bytes += bytes;
                }
                None => self.pieces.push_back(Piece { end: entry.seqno, bytes, began_ms: now_ms }),
            }
        }
    }

    /// The entries up to `up_to` are gone.
    pub(super) fn purged(&mut self, up_to: SeqNo) {
        while self.pieces.pop_front_if(|piece| piece.end <= up_to).is_some() {}
    }

    /// The last entry before the newest ones that always stay.
    fn spare_after(&self) -> SeqNo {
        let mut kept = 0;
        for piece in self.pieces.iter().rev() {
            if kept >= self.retention.bytes_min {
                return piece.end;
            }
            kept += piece.bytes;
        }
        SeqNo::ZERO
    }

    /// The last entry that is beyond a cap.
    fn beyond_cap(&self, now_ms: u64) -> SeqNo {
        let mut bytes: u64 = self.pieces.iter().map(|piece| piece.bytes).sum();
        let mut beyond = SeqNo::ZERO;
        for piece in &self.pieces {
            let age_ms = now_ms.saturating_sub(piece.began_ms);
            if bytes <= self.retention.bytes_max && age_ms <= self.retention.age_max_ms {
                break;
            }
            beyond = piece.end;
            bytes -= piece.bytes;
        }
        beyond
    }

    /// The end of the last whole piece that may go.
    fn whole_pieces(&self, up_to: SeqNo) -> Option<SeqNo> {
        self.pieces.iter().map(|piece| piece.end).take_while(|end| *end <= up_to).last()
    }
}

fn is_full(piece: &Piece, retention: &Retention, now_ms: u64) -> bool {
    piece.bytes >= retention.bytes_max / PIECES_PER_CAP
        || now_ms.saturating_sub(piece.began_ms) >= retention.age_max_ms / PIECES_PER_CAP
}

/// The last entry that a primary lets go of now, if it is worth a write.
pub(super) fn decide_purge(sizes: &LogSizes, needs: &Needs, now_ms: u64) -> Option<SeqNo> {
    let anybody = |position: Option<SeqNo>| position.unwrap_or(SeqNo(u64::MAX));
    let unneeded = anybody(needs.lagging).max(sizes.beyond_cap(now_ms)).min(sizes.spare_after());
    let before_pin = SeqNo(anybody(needs.pinned).0.saturating_sub(1));
    sizes.whole_pieces(unneeded.min(needs.applied).min(anybody(needs.ack_set)).min(before_pin))
}

/// From where on the log is wanted for snapshots on their way, and until when.
#[derive(Clone, Debug, Default)]
pub(super) struct Pins(BTreeMap<SeqNo, u64>);

impl Pins {
    /// Sets a pin, or renews it.
    pub(super) fn set(&mut self, from: SeqNo, until_ms: u64) {
        let until = self.0.entry(from).or_default();
        *until = until_ms.max(*until);
        // One too many is kept by the lowest, which holds whatever it held.
        if self.0.len() > LOG_PINS_MAX
            && let Some((_, folded_ms)) = self.0.pop_last()
            && let Some(mut lowest) = self.0.first_entry()
        {
            let until = lowest.get_mut();
            *until = folded_ms.max(*until);
        }
    }

    pub(super) fn expire(&mut self, now_ms: u64) {
        self.0.retain(|_, until_ms| *until_ms > now_ms);
    }

    pub(super) fn lowest(&self) -> Option<SeqNo> {
        self.0.keys().next().copied()
    }
}

#[cfg(test)]
impl LogSizes {
    /// Ages are left out: the model's log never grows old.
    pub(super) fn fingerprint(&self, hasher: &mut impl Hasher) {
        let Self { retention: _, pieces } = self;
        pieces.iter().for_each(|piece| (piece.end, piece.bytes).hash(hasher));
    }
}

#[cfg(test)]
impl Pins {
    pub(super) fn fingerprint(&self, now_ms: u64, hasher: &mut impl Hasher) {
        self.0.iter().for_each(|(from, until_ms)| (from, until_ms.saturating_sub(now_ms)).hash(hasher));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use cluster_config::ids::OperationId;
    use cluster_config::seqno::PrimaryTerm;

    use super::*;
    use crate::replication::storage::EncodedEntry;

    /// Pieces of two entries of 100 bytes each.
    const RETENTION: Retention = Retention { bytes_min: 400, bytes_max: 200 * PIECES_PER_CAP, age_max_ms: 1_000_000 };

    fn write(seqnos: std::ops::RangeInclusive<u64>) -> LogWrite {
        let payload = Bytes::from(vec![0; 100 - ENTRY_OVERHEAD_BYTES as usize]);
        let entry = |seqno| EncodedEntry::seal(SeqNo(seqno), PrimaryTerm(1), OperationId(0), payload.clone());
        LogWrite { entries: seqnos.map(entry).collect(), ..LogWrite::default() }
    }

    fn sizes(last: u64) -> LogSizes {
        let mut sizes = LogSizes::new(RETENTION, SeqNo(0), SeqNo(0), 0);
        sizes.record(&write(1..=last), 0);
        sizes
    }

    #[test]
    fn an_entry_stays_for_each_reason_alone() {
        let all = |applied| Needs { applied: SeqNo(applied), ..Needs::default() };
        // (needs, purged)
        let cases = [
            // Entries 7 to 10 are the newest 400 bytes.
            (all(10), Some(6)),
            (all(3), Some(2)),
            (all(1), None),
            (Needs { ack_set: Some(SeqNo(4)), ..all(10) }, Some(4)),
            (Needs { ack_set: Some(SeqNo(0)), ..all(10) }, None),
            (Needs { lagging: Some(SeqNo(5)), ..all(10) }, Some(4)),
            (Needs { pinned: Some(SeqNo(5)), ..all(10) }, Some(4)),
            (Needs { pinned: Some(SeqNo(2)), ..all(10) }, None),
        ];
        for (needs, purged) in cases {
            assert_eq!(decide_purge(&sizes(10), &needs, 0), purged.map(SeqNo), "{needs:?}");
        }
    }

    #[test]
    fn beyond_a_cap_the_log_waits_for_the_ack_set_and_for_pins_only() {
        let large = sizes(2 * PIECES_PER_CAP + 20);
        let needs = Needs { applied: SeqNo(100), lagging: Some(SeqNo(0)), ..Needs::default() };
        assert_eq!(decide_purge(&large, &needs, 0), Some(SeqNo(20)), "the cap holds again");
        assert_eq!(decide_purge(&large, &Needs { ack_set: Some(SeqNo(6)), ..needs }, 0), Some(SeqNo(6)));
        assert_eq!(decide_purge(&large, &Needs { pinned: Some(SeqNo(9)), ..needs }, 0), Some(SeqNo(8)));
        assert_eq!(decide_purge(&sizes(10), &needs, RETENTION.age_max_ms), None, "old, but not too old");
        assert_eq!(decide_purge(&sizes(10), &needs, RETENTION.age_max_ms + 1), Some(SeqNo(6)), "the newest stay");
    }

    #[test]
    fn sizes_follow_the_log_through_cuts_purges_and_reopening() {
        let mut sizes = sizes(10);
        sizes.record(&LogWrite { truncate_from: Some(SeqNo(6)), ..write(6..=9) }, 0);
        let needs = Needs { applied: SeqNo(9), ..Needs::default() };
        assert_eq!(decide_purge(&sizes, &needs, 0), Some(SeqNo(5)));
        sizes.purged(SeqNo(5));
        assert_eq!(decide_purge(&sizes, &needs, 0), None);
        let ends: Vec<u64> = sizes.pieces.iter().map(|piece| piece.end.0).collect();
        assert_eq!(ends, [7, 9]);

        let found = LogSizes::new(RETENTION, SeqNo(100), SeqNo(140), 4000);
        let needs = Needs { applied: SeqNo(140), ..Needs::default() };
        let purged = decide_purge(&found, &needs, 0).expect("more than enough");
        assert!((134..=137).contains(&purged.0), "{purged}");
        assert!(LogSizes::new(RETENTION, SeqNo(7), SeqNo(7), 0).pieces.is_empty());
    }

    #[test]
    fn pins_are_renewed_expire_and_are_bounded() {
        let mut pins = Pins::default();
        pins.set(SeqNo(50), 100);
        pins.set(SeqNo(50), 300);
        pins.set(SeqNo(70), 200);
        pins.expire(250);
        assert_eq!(pins.0, BTreeMap::from([(SeqNo(50), 300)]));
        (0..LOG_PINS_MAX as u64).for_each(|n| pins.set(SeqNo(60 + n), 400));
        assert_eq!(pins.0.len(), LOG_PINS_MAX);
        assert_eq!(pins.0[&SeqNo(50)], 400, "the lowest stands in for the one that found no room");
        pins.expire(400);
        assert_eq!(pins.lowest(), None);
    }
}
