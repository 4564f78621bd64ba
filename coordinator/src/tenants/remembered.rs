//! Catalog rows that every request needs, remembered for a moment.
//!
//! A row is read again when it is five seconds old, by one caller; the others go on with what is known. While the catalog does not
//! answer, what was known holds for up to ten minutes: searches need no catalog, and shall not fail with it. So a change made through
//! another coordinator shows here after five seconds; one made here shows at once (`forget_all`).

use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::sync::Cache;
use parking_lot::Mutex;

use crate::catalog::CatalogError;

/// Age at which a row is read again.
const FRESH: Duration = Duration::from_secs(5);
/// Longest wait of a request for a row that is known and due.
const REFRESH_WAIT: Duration = Duration::from_millis(250);
/// Age up to which a row serves while the catalog does not answer.
const USABLE: Duration = Duration::from_secs(600);

struct Entry<V> {
    value: Option<V>,
    /// When it was read, or when somebody last set out to read it again.
    read_at: Mutex<Instant>,
}

/// Rows by key, also those that are not there.
pub(super) struct Remembered<K, V> {
    entries: Cache<K, Arc<Entry<V>>>,
}

impl<K, V> Remembered<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// At most `entries_max` rows.
    pub(super) fn new(entries_max: u64) -> Self {
        Self { entries: Cache::builder().max_capacity(entries_max).time_to_live(USABLE).build() }
    }

    /// The row, from memory or by `read`.
    pub(super) async fn get(
        &self,
        key: K,
        read: impl Future<Output = Result<Option<V>, CatalogError>>,
    ) -> Result<Option<V>, CatalogError> {
        let known = self.entries.get(&key);
        if let Some(entry) = &known
            && !entry.is_due(Instant::now())
        {
            return Ok(entry.value.clone());
        }
        let read = match &known {
            None => read.await,
            // Whoever reads again waits for a moment only: what is known serves as well.
            Some(_) => tokio::time::timeout(REFRESH_WAIT, read)
                .await
                .unwrap_or(Err(CatalogError::Busy { what: "answer", waited: REFRESH_WAIT })),
        };
        match (read, known) {
            (Ok(value), _) => {
                let entry = Entry { value: value.clone(), read_at: Mutex::new(Instant::now()) };
                self.entries.insert(key, Arc::new(entry));
                Ok(value)
            }
            (Err(error), Some(entry)) => {
                tracing::warn!(%error, "the catalog does not answer; what is known goes on to hold");
                Ok(entry.value.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Reads everything anew from now on.
    pub(super) fn forget_all(&self) {
        self.entries.invalidate_all();
    }
}

impl<V> Entry<V> {
    /// Whether the caller is the one to read it again.
    fn is_due(&self, now: Instant) -> bool {
        let mut read_at = self.read_at.lock();
        if now.saturating_duration_since(*read_at) < FRESH {
            return false;
        }
        *read_at = now;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rows_are_read_once_and_survive_a_catalog_that_is_away() {
        let remembered = Remembered::<u8, u8>::new(10);
        let unreachable = async || Err(CatalogError::Unreachable("down".into()));
        assert!(remembered.get(1, unreachable()).await.is_err(), "nothing is known yet");
        assert_eq!(remembered.get(1, async { Ok(Some(7)) }).await.expect("reads"), Some(7));
        assert_eq!(remembered.get(1, async { Ok(Some(8)) }).await.expect("is fresh"), Some(7));
        assert_eq!(remembered.get(2, async { Ok(None) }).await.expect("reads"), None);
        assert_eq!(remembered.get(2, async { Ok(Some(1)) }).await.expect("is fresh"), None);
        // As if it had been read ten seconds ago.
        let age = || {
            let entry = remembered.entries.get(&1).expect("is there");
            *entry.read_at.lock() -= Duration::from_secs(10);
        };
        age();
        assert_eq!(remembered.get(1, unreachable()).await.expect("goes on to hold"), Some(7));
        age();
        assert_eq!(remembered.get(1, async { Ok(Some(8)) }).await.expect("reads"), Some(8));
        remembered.forget_all();
        assert_eq!(remembered.get(1, async { Ok(None) }).await.expect("reads"), None);
    }
}
