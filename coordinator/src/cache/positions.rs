//! Where shards are known to stand.
//!
//! Two facts per shard: the furthest position anyone reported, and when the shard's *primary* last said that it stands
//! there. Only the second proves that nothing newer had been acknowledged; a replica's word only moves the first. It proves it for the
//! moment up to which the primary surely was one: it may have been deposed since without having heard of it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

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
    /// The primary said that it stood there.
    word: Option<Word>,
}

/// A primary's word that it stands somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    asked_at: Instant,
    /// Until then it surely was the primary.
    holds_for: Instant,
}

impl Word {
    /// What a primary, asked then, said of itself; `None` where that is further back than an instant reaches.
    pub fn of(position: &CopyPosition, asked_at: Instant) -> Option<Self> {
        let holds_for = asked_at.checked_sub(Duration::from_millis(position.staleness_ms))?;
        Some(Self { asked_at, holds_for })
    }

    /// That of an acknowledged write begun then: every in-sync copy followed the primary since.
    pub fn proven(asked_at: Instant) -> Self {
        Self { asked_at, holds_for: asked_at }
    }
}

/// How new a primary's word must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// It was asked since: enough for who knows the least position to expect.
    Asked(Instant),
    /// It surely was the primary since.
    Held(Instant),
}

impl Since {
    fn allows(self, word: &Word) -> bool {
        match self {
            Self::Asked(since) => word.asked_at >= since,
            Self::Held(since) => word.holds_for >= since,
        }
    }
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
    /// Notes where a copy stood; `word` if it is the primary.
    pub fn note(&self, shard: ShardId, position: &CopyPosition, word: Option<Word>) {
        let place = place(position);
        let mut known = self.known.lock();
        let entry = known.entry(shard).or_insert(Known { furthest: place, word });
        if place > entry.furthest {
            *entry = Known { furthest: place, word };
        } else if place == entry.furthest {
            let newest = |old: Word, new: Word| Word {
                asked_at: old.asked_at.max(new.asked_at),
                holds_for: old.holds_for.max(new.holds_for),
            };
            entry.word = entry.word.zip(word).map(|(old, new)| newest(old, new)).or(entry.word).or(word);
        }
    }

    /// Judges a result computed at `position` by the primary's word, if that is new enough.
    pub fn judge(&self, shard: ShardId, position: &CopyPosition, since: Since) -> Verdict {
        let known = self.known.lock();
        match known.get(&shard) {
            Some(known) if known.furthest > place(position) => Verdict::Outdated,
            Some(known) if known.furthest == place(position) && known.word.is_some_and(|word| since.allows(&word)) => {
                Verdict::Holds
            }
            _ => Verdict::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
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
        let judge = |since| board.judge(shard, &at(5), Since::Held(since));
        assert_eq!(judge(start), Verdict::Unknown);
        board.note(shard, &at(5), None);
        assert_eq!(judge(start), Verdict::Unknown);
        board.note(shard, &at(5), Word::of(&at(5), start));
        assert_eq!(judge(start), Verdict::Holds);
        assert_eq!(judge(later), Verdict::Unknown);
        board.note(shard, &at(4), Word::of(&at(4), later));
        assert_eq!(judge(later), Verdict::Unknown, "a lagging word confirms nothing");
        board.note(shard, &at(6), None);
        assert_eq!(judge(start), Verdict::Outdated);
    }

    #[test]
    fn a_primary_s_word_counts_for_as_long_as_it_surely_was_one() {
        let shard = ShardId { collection: CollectionId(1), index: 0 };
        let board = PositionBoard::default();
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let old = CopyPosition { staleness_ms: 300, ..at(5) };
        board.note(shard, &old, Word::of(&old, later));
        let judge = |since| board.judge(shard, &at(5), since);
        assert_eq!(judge(Since::Held(later)), Verdict::Unknown);
        assert_eq!(judge(Since::Held(later - Duration::from_millis(300))), Verdict::Holds);
        assert_eq!(judge(Since::Asked(later)), Verdict::Holds);
    }
}
