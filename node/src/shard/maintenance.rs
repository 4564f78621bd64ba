//! When a shard's primary trains a generation and when it moves the tail into the index: pure decisions over a few counts.

use std::time::Duration;

use cluster_config::limits;

/// Work that the primary of a shard should have logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maintenance {
    /// Call `train` and log what it returns, piece by piece and in order.
    Train,
    /// Log an `IndexUpTo` of this.
    IndexUpTo {
        /// The installed generation.
        generation: u64,
        /// Rows below this.
        row_end: u64,
    },
}

/// What the decision looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaintenanceInput {
    /// Rows that are neither replaced nor deleted.
    pub rows_live: u64,
    /// Live rows below which the shard searches exactly.
    pub training_floor: u64,
    /// Installed generation; 0: none.
    pub generation: u64,
    /// Rows given out.
    pub row_end: u64,
    /// Rows that the index has reached.
    pub indexed_row_end: u64,
    /// Live rows that it has not.
    pub rows_tail: u64,
    /// Since the last row was given out.
    pub quiet: Duration,
}

/// Writes that pause this long are taken as finished: then the rest of the tail is indexed, however short.
const QUIET: Duration = Duration::from_secs(1);
/// A tail shorter than this is compared exactly in well under a millisecond; indexing it during a load is not worth a log entry.
const TAIL_ROWS_MIN: u64 = 2048;
/// During a load the tail may grow to this share of the indexed rows, because each step copies the index once.
const TAIL_SHARE: u64 = 8;
/// During a load, training waits for this many times the floor: a generation trained on the first tenth of a corpus fits it worse
/// than one trained on most of it, and exact search over so few rows still takes only milliseconds.
const FLOORS_WITHOUT_PAUSE: u64 = 4;

/// The next piece of work, if any. Asked again after each is applied, until there is none.
pub fn decide_maintenance(input: &MaintenanceInput) -> Option<Maintenance> {
    let is_quiet = input.quiet >= QUIET;
    if input.generation == 0 {
        let rows_wanted = if is_quiet { input.training_floor } else { input.training_floor * FLOORS_WITHOUT_PAUSE };
        return (input.rows_live >= rows_wanted).then_some(Maintenance::Train);
    }
    if input.rows_tail == 0 {
        return None;
    }
    let tail_max = (input.indexed_row_end / TAIL_SHARE).clamp(TAIL_ROWS_MIN, limits::INDEX_STEP_ROWS_MAX);
    let is_due = input.rows_tail >= tail_max || is_quiet;
    let row_end = input.row_end.min(input.indexed_row_end + limits::INDEX_STEP_ROWS_MAX);
    is_due.then_some(Maintenance::IndexUpTo { generation: input.generation, row_end })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Duration = Duration::ZERO;

    fn input() -> MaintenanceInput {
        MaintenanceInput {
            rows_live: 0,
            training_floor: 10_000,
            generation: 0,
            row_end: 0,
            indexed_row_end: 0,
            rows_tail: 0,
            quiet: BUSY,
        }
    }

    #[test]
    fn trains_at_the_floor_once_the_load_pauses_or_is_large() {
        let at = |rows_live, quiet| decide_maintenance(&MaintenanceInput { rows_live, quiet, ..input() });
        assert_eq!(at(9_999, QUIET), None);
        assert_eq!(at(10_000, BUSY), None);
        assert_eq!(at(10_000, QUIET), Some(Maintenance::Train));
        assert_eq!(at(39_999, BUSY), None);
        assert_eq!(at(40_000, BUSY), Some(Maintenance::Train));
    }

    #[test]
    fn indexes_in_steps_until_the_tail_is_empty() {
        let mut state = MaintenanceInput {
            rows_live: 50_000,
            generation: 1,
            row_end: 50_000,
            rows_tail: 50_000,
            quiet: QUIET,
            ..input()
        };
        let mut steps = Vec::new();
        while let Some(work) = decide_maintenance(&state) {
            let Maintenance::IndexUpTo { generation: 1, row_end } = work else { panic!("{work:?}") };
            assert!(row_end > state.indexed_row_end && row_end - state.indexed_row_end <= limits::INDEX_STEP_ROWS_MAX);
            steps.push(row_end);
            state.indexed_row_end = row_end;
            state.rows_tail = state.row_end - row_end;
        }
        assert_eq!(steps, [16_384, 32_768, 49_152, 50_000]);
    }

    #[test]
    fn a_busy_shard_indexes_when_the_tail_is_a_share_of_the_index() {
        let tail = |indexed_row_end, rows_tail, quiet| {
            let row_end = indexed_row_end + rows_tail;
            decide_maintenance(&MaintenanceInput {
                generation: 3,
                row_end,
                indexed_row_end,
                rows_tail,
                quiet,
                ..input()
            })
        };
        assert_eq!(tail(0, 2047, BUSY), None);
        assert_eq!(tail(0, 2048, BUSY), Some(Maintenance::IndexUpTo { generation: 3, row_end: 2048 }));
        assert_eq!(tail(80_000, 9_999, BUSY), None);
        assert_eq!(tail(80_000, 10_000, BUSY), Some(Maintenance::IndexUpTo { generation: 3, row_end: 90_000 }));
        assert_eq!(tail(80_000, 1, BUSY), None);
        assert_eq!(tail(80_000, 1, QUIET), Some(Maintenance::IndexUpTo { generation: 3, row_end: 80_001 }));
        assert_eq!(tail(80_000, 0, QUIET), None);
    }
}
