//! Stopping a search whose caller is gone or out of time. Blocking code asks between bounded pieces of work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::VectorError;

/// A flag and a deadline. Clones share the flag.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    cancelled: Arc<AtomicBool>,
    deadline: Option<Instant>,
}

impl Cancel {
    /// Cancelled by [`Cancel::cancel`] or by the clock.
    pub fn new(deadline: Option<Instant>) -> Self {
        Self { cancelled: Arc::default(), deadline }
    }

    /// Without a deadline, for work that nobody waits for.
    pub fn never() -> Self {
        Self::default()
    }

    /// Asks all clones to stop.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether to stop.
    pub fn is_cancelled(&self) -> bool {
        self.check().is_err()
    }

    /// Errors: `Cancelled` or `DeadlineExceeded`, whichever is the case.
    pub fn check(&self) -> Result<(), VectorError> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(VectorError::Cancelled);
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(VectorError::DeadlineExceeded),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_config::error::ErrorKind;

    #[test]
    fn clones_share_the_flag_and_the_deadline_is_told_apart() {
        let cancel = Cancel::new(Some(Instant::now()));
        assert_eq!(cancel.check().expect_err("past deadline").kind(), ErrorKind::DeadlineExceeded);
        let cancel = Cancel::never();
        let clone = cancel.clone();
        assert!(!clone.is_cancelled());
        cancel.cancel();
        assert_eq!(clone.check().expect_err("cancelled").kind(), ErrorKind::Cancelled);
    }
}
