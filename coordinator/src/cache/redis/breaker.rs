//! Whether Redis is worth asking: pure, fed with the outcomes of reads.
//!
//! It opens on a share of failures, not on a run of them: with one of three masters gone two thirds of the reads still succeed. It
//! does not close by trying a request's luck: whoever owns the connection probes it and says so.

/// Reads that are remembered.
const WINDOW: u32 = 20;
/// Failures among them that open it. At the default timeout of 5 ms an outage costs the requests of one coordinator this many waits
/// and those under way.
const FAILURES_MAX: u32 = 5;

/// Remembers the last reads. Starts open: nothing is connected yet.
#[derive(Debug)]
pub(super) struct Breaker {
    /// One bit per read, newest lowest; 1 is a failure.
    history: u32,
    is_open: bool,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { history: 0, is_open: true }
    }
}

impl Breaker {
    /// Whether requests go on without Redis.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Notes how a read went; says whether this opened it.
    pub(super) fn note(&mut self, is_failure: bool) -> bool {
        if self.is_open {
            // An answer that was under way when it opened.
            return false;
        }
        self.history = (self.history << 1 | u32::from(is_failure)) & ((1 << WINDOW) - 1);
        self.is_open = self.history.count_ones() >= FAILURES_MAX;
        self.is_open
    }

    /// Redis answers again.
    pub(super) fn close(&mut self) {
        *self = Self { history: 0, is_open: false };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed() -> Breaker {
        let mut breaker = Breaker::default();
        assert!(breaker.is_open(), "before the first connection");
        breaker.close();
        breaker
    }

    #[test]
    fn opens_once_when_a_third_of_the_reads_fails() {
        let mut breaker = closed();
        let opened: Vec<usize> = (0..60).filter(|read| breaker.note(read % 3 == 0)).collect();
        assert_eq!(opened, [12], "the fifth failure of a dead third");
    }

    #[test]
    fn rare_failures_are_borne() {
        let mut breaker = closed();
        assert!((0..1000).all(|read| !breaker.note(read % 6 == 0)));
    }

    #[test]
    fn late_failures_neither_open_it_again_nor_count_after_it_closed() {
        let mut breaker = closed();
        while !breaker.note(true) {}
        assert!(!breaker.note(true));
        breaker.close();
        assert!(!breaker.is_open() && (1..FAILURES_MAX).all(|_| !breaker.note(true)));
    }
}
