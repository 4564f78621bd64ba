//! When a shard's primary trains a generation, moves the tail into the index, and measures what efforts find there: pure decisions over
//! a few counts.

use std::time::Duration;

use cluster_config::limits;

/// Work that the primary of a shard should have logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maintenance {
    /// Call `train` and log what it returns, piece by piece and in order.
    Train,
    /// Log an `IndexUpTo` of this.
    IndexUpTo {
        /// The generation that serves, or the one that renews it.
        generation: u64,
        /// Rows below this.
        row_end: u64,
    },
    /// Call `measure_effort` and log what it returns.
    MeasureEffort,
}

/// What the decision looks at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaintenanceInput {
    /// Rows that are neither replaced nor deleted.
    pub rows_live: u64,
    /// Live rows below which the shard searches exactly.
    pub training_floor: u64,
    /// The generation that serves; 0: none.
    pub generation: u64,
    /// The generation that will take its place, and the rows that its index has reached.
    pub renewal: Option<(u64, u64)>,
    /// Lists of the generation that serves.
    pub lists: u32,
    /// Lists that one trained now would have.
    pub lists_wanted: u32,
    /// Rows given out when the generation was installed.
    pub installed_row_end: u64,
    /// Efforts were measured on the rows below this; 0: not yet.
    pub measured_row_end: u64,
    /// Recall of the default effort, as it was measured on the sample.
    pub recall_trained: Option<f32>,
    /// And as it was last measured on the rows of the index.
    pub recall_measured: Option<f32>,
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
/// Nothing was written for this long before efforts are measured.
const IDLE: Duration = Duration::from_secs(5);
/// A tail shorter than this costs a search a few tens of microseconds; indexing it during a load is not worth a log entry.
const TAIL_ROWS_MIN: u64 = 256;
/// During a load the tail may grow to this share of the indexed rows: every search compares it exactly, and each step copies the
/// index once. So many rows cost about twice as much to encode as the index does to copy.
const TAIL_SHARE: u64 = 256;
/// During a load, training waits for this many times the floor: a generation trained on the first tenth of a corpus fits it worse
/// than one trained on most of it, and exact search over so few rows still takes only milliseconds.
const FLOORS_WITHOUT_PAUSE: u64 = 4;

/// A generation is outgrown when one trained now would have so many times its lists: in a pause, and without one.
const OUTGROWN_LISTS: u32 = 2;
const OUTGROWN_LISTS_WITHOUT_PAUSE: u32 = 3;
/// Efforts are measured again when the rows have become more by this share (1/4).
const REMEASURE_SHARE: u64 = 4;
/// Recall of the default effort that may be lost before a generation counts as drifted.
const RECALL_LOSS_MAX: f32 = 0.02;

/// The next piece of work, if any. Asked again after each is applied, until there is none.
pub fn decide_maintenance(input: &MaintenanceInput) -> Option<Maintenance> {
    let is_quiet = input.quiet >= QUIET;
    if input.generation == 0 {
        let rows_wanted = if is_quiet { input.training_floor } else { input.training_floor * FLOORS_WITHOUT_PAUSE };
        return (input.rows_live >= rows_wanted).then_some(Maintenance::Train);
    }
    let step_from = |generation, indexed_row_end| Maintenance::IndexUpTo {
        generation,
        row_end: input.row_end.min(indexed_row_end + limits::INDEX_STEP_ROWS_MAX),
    };
    if let Some((generation, indexed_row_end)) = input.renewal {
        return Some(step_from(generation, indexed_row_end));
    }
    let tail_max = (input.indexed_row_end / TAIL_SHARE).clamp(TAIL_ROWS_MIN, limits::INDEX_STEP_ROWS_MAX);
    if input.rows_tail >= tail_max || (is_quiet && input.rows_tail > 0) {
        return Some(step_from(input.generation, input.indexed_row_end));
    }
    if is_outgrown(input, is_quiet) || has_drifted(input) {
        return Some(Maintenance::Train);
    }
    let is_measured = input.measured_row_end + input.measured_row_end / REMEASURE_SHARE > input.row_end;
    let is_whole = input.rows_tail == 0 && input.indexed_row_end > 0;
    (input.quiet >= IDLE && is_whole && !is_measured).then_some(Maintenance::MeasureEffort)
}

/// Whether the rows have become so many that they want more lists than the generation has. Lists grow with the root of the rows, so
/// twice the lists are four times the rows.
fn is_outgrown(input: &MaintenanceInput, is_quiet: bool) -> bool {
    let factor = if is_quiet { OUTGROWN_LISTS } else { OUTGROWN_LISTS_WITHOUT_PAUSE };
    input.rows_live >= input.training_floor && input.lists_wanted >= input.lists.saturating_mul(factor)
}

/// Whether the default effort finds less in the index than it did in the sample, and rows came since that a new training would see:
/// without them it would only end where the first one did.
fn has_drifted(input: &MaintenanceInput) -> bool {
    let (Some(trained), Some(measured)) = (input.recall_trained, input.recall_measured) else { return false };
    let has_new_rows = input.row_end >= input.installed_row_end + input.installed_row_end / REMEASURE_SHARE;
    input.rows_live >= input.training_floor && measured + RECALL_LOSS_MAX < trained && has_new_rows
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
            renewal: None,
            lists: 200,
            lists_wanted: 200,
            installed_row_end: 0,
            measured_row_end: u64::MAX / 2,
            recall_trained: None,
            recall_measured: None,
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
        assert_eq!(tail(0, 255, BUSY), None);
        assert_eq!(tail(0, 256, BUSY), Some(Maintenance::IndexUpTo { generation: 3, row_end: 256 }));
        assert_eq!(tail(256_000, 999, BUSY), None);
        assert_eq!(tail(256_000, 1000, BUSY), Some(Maintenance::IndexUpTo { generation: 3, row_end: 257_000 }));
        assert_eq!(tail(80_000, 1, BUSY), None);
        assert_eq!(tail(80_000, 1, QUIET), Some(Maintenance::IndexUpTo { generation: 3, row_end: 80_001 }));
        assert_eq!(tail(80_000, 0, QUIET), None);
    }

    fn indexed(rows: u64) -> MaintenanceInput {
        MaintenanceInput {
            rows_live: rows,
            generation: 3,
            row_end: rows,
            indexed_row_end: rows,
            installed_row_end: rows,
            quiet: QUIET,
            ..input()
        }
    }

    #[test]
    fn a_renewal_is_indexed_before_anything_else() {
        let state = MaintenanceInput { renewal: Some((4, 10_000)), rows_tail: 9_000, quiet: BUSY, ..indexed(50_000) };
        let expected = Maintenance::IndexUpTo { generation: 4, row_end: 26_384 };
        assert_eq!(decide_maintenance(&state), Some(expected));
    }

    #[test]
    fn an_outgrown_generation_is_renewed_sooner_in_a_pause() {
        let at = |lists_wanted, quiet| decide_maintenance(&MaintenanceInput { lists_wanted, quiet, ..indexed(40_000) });
        assert_eq!(at(399, QUIET), None);
        assert_eq!(at(400, QUIET), Some(Maintenance::Train));
        assert_eq!(at(400, BUSY), None);
        assert_eq!(at(600, BUSY), Some(Maintenance::Train));
        let few = MaintenanceInput { lists_wanted: 400, rows_live: 9_999, ..indexed(40_000) };
        assert_eq!(decide_maintenance(&few), None, "most of its rows were deleted");
    }

    #[test]
    fn a_drifted_generation_is_renewed_only_if_there_are_rows_it_never_saw() {
        let drifted = |recall_measured, installed_row_end| {
            let (recall_trained, recall_measured) = (Some(0.99), Some(recall_measured));
            let state = MaintenanceInput { recall_trained, recall_measured, installed_row_end, ..indexed(50_000) };
            decide_maintenance(&state) == Some(Maintenance::Train)
        };
        assert!(drifted(0.96, 40_000));
        assert!(!drifted(0.975, 40_000), "little is lost");
        assert!(!drifted(0.96, 40_001), "a new training would see what the last one saw");
    }

    #[test]
    fn efforts_are_measured_in_a_pause_when_the_rows_have_changed() {
        let at = |measured_row_end, quiet| {
            decide_maintenance(&MaintenanceInput { measured_row_end, quiet, ..indexed(50_000) })
        };
        assert_eq!(at(0, QUIET), None);
        assert_eq!(at(0, IDLE), Some(Maintenance::MeasureEffort));
        assert_eq!(at(40_000, IDLE), Some(Maintenance::MeasureEffort));
        assert_eq!(at(40_001, IDLE), None);
    }
}
