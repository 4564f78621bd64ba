//! Which rows a search may return.

use std::ops::Range;
use std::sync::Arc;

use roaring::RoaringTreemap;

const WORD_BITS: u64 = u64::BITS as u64;

/// The rows below `row_end` that are live and pass the filter. Cheap to clone and to test.
///
/// Invariants: where there are words, there are `ceil(row_end / 64)` of them, bits at and above `row_end` are zero, and
/// `count` is the number of ones; where there are none, every row is allowed and a search needs no selector at all.
#[derive(Clone, Debug)]
pub struct RowSet {
    row_end: u64,
    count: u64,
    words: Option<Arc<[u64]>>,
}

impl RowSet {
    /// Every row below `row_end`.
    pub fn all(row_end: u64) -> Self {
        Self { row_end, count: row_end, words: None }
    }

    /// Every row below `row_end` but the tombstones.
    pub fn live(row_end: u64, tombstones: &RoaringTreemap) -> Self {
        if tombstones.min().is_none_or(|first| first >= row_end) {
            return Self::all(row_end);
        }
        let mut words = ones(row_end);
        clear(&mut words, row_end, tombstones);
        Self::from_words(row_end, words)
    }

    /// The rows below `row_end` that are in `matching` and no tombstones.
    pub fn matching(row_end: u64, matching: &RoaringTreemap, tombstones: &RoaringTreemap) -> Self {
        let mut words = vec![0; words_for(row_end)];
        for row in matching.iter().take_while(|row| *row < row_end) {
            words[(row / WORD_BITS) as usize] |= 1 << (row % WORD_BITS);
        }
        clear(&mut words, row_end, tombstones);
        Self::from_words(row_end, words)
    }

    fn from_words(row_end: u64, words: Vec<u64>) -> Self {
        let count = words.iter().map(|word| u64::from(word.count_ones())).sum();
        let words = (count < row_end).then(|| Arc::from(words));
        let set = Self { row_end, count, words };
        debug_assert!(set.check());
        set
    }

    /// Whether the invariants hold.
    pub fn check(&self) -> bool {
        let Some(words) = &self.words else { return self.count == self.row_end };
        let ones: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
        let beyond = match (words.last(), self.row_end % WORD_BITS) {
            (Some(last), rest @ 1..) => last >> rest,
            _ => 0,
        };
        words.len() == words_for(self.row_end) && ones == self.count && beyond == 0
    }

    /// Whether the row may be returned.
    pub fn contains(&self, row: u64) -> bool {
        match &self.words {
            _ if row >= self.row_end => false,
            None => true,
            Some(words) => words[(row / WORD_BITS) as usize] >> (row % WORD_BITS) & 1 == 1,
        }
    }

    /// How many rows may be returned.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many of them are below `row`.
    pub fn count_below(&self, row: u64) -> u64 {
        let row = row.min(self.row_end);
        let Some(words) = &self.words else { return row };
        let whole = (row / WORD_BITS) as usize;
        let below: u64 = words[..whole].iter().map(|word| u64::from(word.count_ones())).sum();
        let rest = match row % WORD_BITS {
            0 => 0,
            bits => u64::from((words[whole] & ((1 << bits) - 1)).count_ones()),
        };
        below + rest
    }

    /// Heap bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.words.as_ref().map_or(0, |words| size_of_val::<[u64]>(words) as u64)
    }

    /// Rows at and above this are not in the set.
    pub fn row_end(&self) -> u64 {
        self.row_end
    }

    /// Whether every row below `row_end` is in the set.
    pub fn is_all(&self) -> bool {
        self.words.is_none()
    }

    /// The allowed rows within `range`, ascending.
    pub fn iter(&self, range: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        let end = range.end.min(self.row_end);
        let mut next = range.start;
        std::iter::from_fn(move || {
            let row = self.next_from(next, end)?;
            next = row + 1;
            Some(row)
        })
    }

    fn next_from(&self, from: u64, end: u64) -> Option<u64> {
        if from >= end {
            return None;
        }
        let Some(words) = &self.words else { return Some(from) };
        let mut position = (from / WORD_BITS) as usize;
        let mut word = words[position] & (u64::MAX << (from % WORD_BITS));
        while word == 0 {
            position += 1;
            word = *words.get(position)?;
        }
        let row = position as u64 * WORD_BITS + u64::from(word.trailing_zeros());
        (row < end).then_some(row)
    }

    /// The bitmap for FAISS' selector; `None` where every row is allowed. Bit `row % 64` of word `row / 64`, which on this
    /// little-endian machine is also bit `row % 8` of byte `row / 8`.
    pub(super) fn words(&self) -> Option<&[u64]> {
        self.words.as_deref()
    }

    /// The bitmap even where every row is allowed.
    pub(super) fn to_words(&self) -> Vec<u64> {
        match &self.words {
            Some(words) => words.to_vec(),
            None => ones(self.row_end),
        }
    }
}

fn words_for(row_end: u64) -> usize {
    row_end.div_ceil(WORD_BITS) as usize
}

/// A bitmap of all rows below `row_end`.
fn ones(row_end: u64) -> Vec<u64> {
    let mut words = vec![u64::MAX; words_for(row_end)];
    if let (Some(last), rest @ 1..) = (words.last_mut(), row_end % WORD_BITS) {
        *last = (1 << rest) - 1;
    }
    words
}

fn clear(words: &mut [u64], row_end: u64, tombstones: &RoaringTreemap) {
    for row in tombstones.iter().take_while(|row| *row < row_end) {
        words[(row / WORD_BITS) as usize] &= !(1 << (row % WORD_BITS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::btree_set;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn agrees(set: &RowSet, model: &BTreeSet<u64>, probe_end: u64) -> Result<(), TestCaseError> {
        prop_assert!(set.check());
        prop_assert_eq!(set.count(), model.len() as u64);
        prop_assert_eq!(set.iter(0..u64::MAX).collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
        for row in 0..probe_end {
            prop_assert_eq!(set.contains(row), model.contains(&row), "row {}", row);
            prop_assert_eq!(set.count_below(row), model.range(..row).count() as u64, "below {}", row);
        }
        let middle = probe_end / 3..probe_end / 2;
        let in_middle: Vec<u64> = model.range(middle.clone()).copied().collect();
        prop_assert_eq!(set.iter(middle).collect::<Vec<_>>(), in_middle);
        Ok(())
    }

    proptest! {
        #[test]
        fn behaves_as_a_set(
            row_end in 0u64..400,
            matching in btree_set(0u64..450, 0..450),
            tombstones in btree_set(0u64..450, 0..200),
        ) {
            let tombstone_map: RoaringTreemap = tombstones.iter().copied().collect();
            let matching_map: RoaringTreemap = matching.iter().copied().collect();

            let live: BTreeSet<u64> = (0..row_end).filter(|row| !tombstones.contains(row)).collect();
            agrees(&RowSet::live(row_end, &tombstone_map), &live, 460)?;

            let both: BTreeSet<u64> = live.intersection(&matching).copied().collect();
            agrees(&RowSet::matching(row_end, &matching_map, &tombstone_map), &both, 460)?;

            agrees(&RowSet::all(row_end), &(0..row_end).collect(), 460)?;
        }
    }

    #[test]
    fn a_set_of_everything_needs_no_bitmap() {
        let nothing = RoaringTreemap::new();
        let beyond: RoaringTreemap = [70u64, 1 << 40].into_iter().collect();
        assert!(RowSet::live(70, &nothing).is_all());
        assert!(RowSet::live(70, &beyond).is_all());
        assert!(RowSet::matching(70, &(0u64..80).collect(), &beyond).is_all());
        assert!(!RowSet::live(71, &beyond).is_all());
        assert!(RowSet::all(0).is_all());
    }
}
