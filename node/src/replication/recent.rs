//! The newest entries of the log in memory: those on their way to the disk, and some more, so that peers and the applier rarely
//! read the disk.

use std::collections::VecDeque;

use cluster_config::limits::{APPEND_BYTES_MAX, APPEND_ENTRIES_MAX, RECENT_ENTRIES_BYTES_MAX};
use cluster_config::seqno::SeqNo;

use super::storage::{EncodedEntry, LogWrite};

/// A gap-free piece of the log that ends at its last entry.
#[derive(Debug, Default)]
pub(super) struct Recent {
    entries: VecDeque<EncodedEntry>,
    bytes: usize,
}

impl Recent {
    /// Follows a change of the log.
    pub(super) fn record(&mut self, write: &LogWrite) {
        if let Some(cut) = write.truncate_from {
            while let Some(entry) = self.entries.pop_back_if(|entry| entry.seqno >= cut) {
                self.bytes -= size_bytes(&entry);
            }
        }
        for entry in &write.entries {
            self.bytes += size_bytes(entry);
            self.entries.push_back(entry.clone());
        }
    }

    /// Bytes of the entries held, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Entries from `from` to at most `up_to`, as many as one message may carry. `None` if the first one must be read from disk.
    pub(super) fn slice(&self, from: SeqNo, up_to: SeqNo) -> Option<Vec<EncodedEntry>> {
        let first = self.entries.front()?.seqno;
        let skip = from.0.checked_sub(first.0)? as usize;
        let mut bytes = 0;
        let fits = |entry: &&EncodedEntry| {
            let is_first = bytes == 0;
            bytes += size_bytes(entry);
            entry.seqno <= up_to && (is_first || bytes <= APPEND_BYTES_MAX)
        };
        let found: Vec<_> = self.entries.iter().skip(skip).take(APPEND_ENTRIES_MAX).take_while(fits).cloned().collect();
        (!found.is_empty()).then_some(found)
    }

    /// Lets go of entries that are durable and needed by nobody, and of more where memory is short.
    pub(super) fn evict(&mut self, durable: SeqNo, needed_by_nobody: SeqNo) {
        let is_short = |bytes: usize| bytes > RECENT_ENTRIES_BYTES_MAX;
        while let Some(entry) = self
            .entries
            .pop_front_if(|entry| entry.seqno <= durable && (entry.seqno <= needed_by_nobody || is_short(self.bytes)))
        {
            self.bytes -= size_bytes(&entry);
        }
    }
}

/// What an entry costs in memory and on the wire, about: its payload, position, operation id and checksum.
fn size_bytes(entry: &EncodedEntry) -> usize {
    entry.payload.len() + size_of::<EncodedEntry>()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use cluster_config::ids::OperationId;
    use cluster_config::seqno::PrimaryTerm;

    use super::*;

    fn entries(seqnos: std::ops::RangeInclusive<u64>, bytes: usize) -> LogWrite {
        let payload = Bytes::from(vec![0; bytes]);
        let entry = |seqno| EncodedEntry::seal(SeqNo(seqno), PrimaryTerm(1), OperationId(0), payload.clone());
        LogWrite { entries: seqnos.map(entry).collect(), ..LogWrite::default() }
    }

    fn seqnos(slice: Option<Vec<EncodedEntry>>) -> Option<Vec<u64>> {
        slice.map(|entries| entries.iter().map(|entry| entry.seqno.0).collect())
    }

    #[test]
    fn follows_the_log_and_never_drops_what_is_not_durable() {
        let mut recent = Recent::default();
        recent.record(&entries(1..=4, 10));
        recent.record(&LogWrite { truncate_from: Some(SeqNo(4)), ..entries(4..=5, 10) });
        assert_eq!(seqnos(recent.slice(SeqNo(2), SeqNo(4))), Some(vec![2, 3, 4]));
        recent.evict(SeqNo(3), SeqNo(5));
        assert_eq!(seqnos(recent.slice(SeqNo(4), SeqNo(9))), Some(vec![4, 5]));
        assert_eq!(recent.slice(SeqNo(3), SeqNo(9)), None, "evicted");
        assert_eq!(recent.slice(SeqNo(6), SeqNo(9)), None, "beyond the end");
        recent.evict(SeqNo(5), SeqNo(5));
        assert_eq!(recent.bytes, 0);
    }

    #[test]
    fn memory_and_messages_are_bounded() {
        let mut recent = Recent::default();
        let size = APPEND_BYTES_MAX / 2;
        recent.record(&entries(1..=8, size));
        assert_eq!(seqnos(recent.slice(SeqNo(1), SeqNo(8))), Some(vec![1]), "two and their headers exceed a message");
        recent.evict(SeqNo(8), SeqNo::ZERO);
        assert!(recent.bytes <= RECENT_ENTRIES_BYTES_MAX);
        let mut large = Recent::default();
        large.record(&entries(1..=1, APPEND_BYTES_MAX * 2));
        assert_eq!(seqnos(large.slice(SeqNo(1), SeqNo(1))), Some(vec![1]), "a large one travels alone");
    }
}
