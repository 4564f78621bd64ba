//! Where shards are known to stand.
//!
//! Two facts per shard: the furthest position anyone reported, and when the shard's *primary* last said that it stands
//! there. Only the second proves that nothing newer had been acknowledged at that moment; a replica's word only moves the first.

use std::collections::HashMap;
use std::time::Instant;

use cluster_config::ids::{Lineage, ShardId};
use cluster_config::search::CopyPosition;
use cluster_config::seqno::SeqNo;
use parking_lot::Mutex;

/// What makes two positions of one shard the same for a reader.
type Place = (Lineage, SeqNo, u64);

fn place(position: &CopyPosition) -> Place {
    (position.lineage, position.applied, position.generation)
}

#[derive(Clone, Copy, Debug)]
struct Known {
    furthest: Place,
    /// When the primary, asked then, stood at `furthest`.
    confirmed: Option<Instant>,
}

/// Whether a result computed at some position may still be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The primary stood there within the bound.
    Holds,
    /// The shard has moved on.
    Outdated,
    /// Nobody knows; ask the primary.
    Unknown,
}

/// The board. Bounded by the number of shards ever seen by this process.
#[derive(Debug, Default)]
pub struct PositionBoard {
    known: Mutex<HashMap<ShardId, Known>>,
}

impl PositionBoard {
    /// Notes where a copy stood. `confirmed` is when the primary was asked; `None` if the copy is not the primary.
    pub fn note(&self, shard: ShardId, position: &CopyPosition, confirmed: Option<Instant>) {
        let place = place(position);
        let mut known = self.known.lock();
        let entry = known.entry(shard).or_insert(Known { furthest: place, confirmed });
        if place > entry.furthest {
            *entry = Known { furthest: place, confirmed };
        } else if place == entry.furthest {
            entry.confirmed = entry.confirmed.max(confirmed);
        }
    }

    /// Judges a result computed at `position`, if the primary's word is no older than `since`.
    pub fn judge(&self, shard: ShardId, position: &CopyPosition, since: Instant) -> Verdict {
        let known = self.known.lock();
        match known.get(&shard) {
            Some(known) if known.furthest > place(position) => Verdict::Outdated,
            Some(known) if known.furthest == place(position) && known.confirmed.is_some_and(|at| at >= since) => {
                Verdict::Holds
            }
            _ => Verdict::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cluster_config::ids::CollectionId;

    use super::*;

    fn at(applied: u64) -> CopyPosition {
        CopyPosition { applied: SeqNo(applied), ..CopyPosition::default() }
    }

    #[test]
    fn only_the_primary_confirms_and_anyone_outdates() {
        let shard = ShardId { collection: CollectionId(1), index: 0 };
        let board = PositionBoard::default();
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        assert_eq!(board.judge(shard, &at(5), start), Verdict::Unknown);
        board.note(shard, &at(5), None);
        assert_eq!(board.judge(shard, &at(5), start), Verdict::Unknown);
        board.note(shard, &at(5), Some(start));
        assert_eq!(board.judge(shard, &at(5), start), Verdict::Holds);
        assert_eq!(board.judge(shard, &at(5), later), Verdict::Unknown);
        board.note(shard, &at(4), Some(later));
        assert_eq!(board.judge(shard, &at(5), later), Verdict::Unknown, "a lagging word confirms nothing");
        board.note(shard, &at(6), None);
        assert_eq!(board.judge(shard, &at(5), start), Verdict::Outdated);
    }
}
