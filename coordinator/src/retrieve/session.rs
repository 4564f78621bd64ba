//! The session token: per shard, the lowest position a later read may be served at.
//!
//! Callers treat it as opaque. Its text is `s1.` and `collection/index:lineage:seqno` joined by commas, so that it can be read in a
//! bug report. It carries no secret: it only ever makes reads wait.

use std::collections::BTreeMap;
use std::fmt;

use cluster_config::ids::{Lineage, ShardId};
use cluster_config::limits;
use cluster_config::search::{CopyPosition, SessionToken};
use cluster_config::seqno::SeqNo;

const PREFIX: &str = "s1.";

/// Positions a caller has seen or written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    tokens: BTreeMap<ShardId, SessionToken>,
}

/// The text is not a session token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a session token")]
pub struct InvalidSession;

impl Session {
    /// Reads what `Session::to_string` wrote.
    pub fn parse(text: &str) -> Result<Self, InvalidSession> {
        let body =
            text.strip_prefix(PREFIX).filter(|_| text.len() <= limits::SESSION_BYTES_MAX).ok_or(InvalidSession)?;
        let mut session = Self::default();
        for part in body.split(',').filter(|part| !part.is_empty()) {
            let mut fields = part.split(':');
            let (Some(shard), Some(lineage), Some(seqno), None) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                return Err(InvalidSession);
            };
            let shard: ShardId = shard.parse().map_err(|_| InvalidSession)?;
            let lineage = Lineage(lineage.parse().map_err(|_| InvalidSession)?);
            let seqno = SeqNo(seqno.parse().map_err(|_| InvalidSession)?);
            if session.tokens.len() >= limits::SHARDS_MAX as usize {
                return Err(InvalidSession);
            }
            session.raise(shard, lineage, seqno);
        }
        Ok(session)
    }

    /// Raises one shard's position; a newer lineage replaces an older one.
    pub fn raise(&mut self, shard: ShardId, lineage: Lineage, seqno: SeqNo) {
        let token = self.tokens.entry(shard).or_insert(SessionToken { lineage, seqno });
        if (lineage, seqno) > (token.lineage, token.seqno) {
            *token = SessionToken { lineage, seqno };
        }
    }

    /// Raises by where a copy stood when it answered.
    pub fn observe(&mut self, shard: ShardId, position: &CopyPosition) {
        self.raise(shard, position.lineage, position.applied);
    }

    /// Raises every shard to where `other` stands.
    pub fn merge(&mut self, other: &Session) {
        for (shard, token) in &other.tokens {
            self.raise(*shard, token.lineage, token.seqno);
        }
    }

    /// The token of one shard.
    pub fn token(&self, shard: ShardId) -> Option<SessionToken> {
        self.tokens.get(&shard).copied()
    }

    /// Drops tokens of shards that `keep` refuses: a token must not grow for ever with deleted collections.
    pub fn retain(&mut self, keep: impl Fn(ShardId) -> bool) {
        self.tokens.retain(|shard, _| keep(*shard));
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        for (position, (shard, token)) in self.tokens.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(f, "{comma}{shard}:{}:{}", token.lineage, token.seqno)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use cluster_config::ids::CollectionId;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn reads_what_it_writes_and_only_rises(
            raises in proptest::collection::vec((1u64..3, 0u32..4, 0u64..2, 0u64..100), 0..40)
        ) {
            let mut session = Session::default();
            for (collection, index, lineage, seqno) in raises {
                let shard = ShardId { collection: CollectionId(collection), index };
                let before = session.token(shard);
                session.raise(shard, Lineage(lineage), SeqNo(seqno));
                let after = session.token(shard).expect("was raised");
                if let Some(before) = before {
                    prop_assert!((after.lineage, after.seqno) >= (before.lineage, before.seqno));
                }
            }
            prop_assert_eq!(Session::parse(&session.to_string()), Ok(session));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}") {
            let _ = Session::parse(&text);
            let _ = Session::parse(&format!("s1.{text}"));
        }
    }

    #[test]
    fn refuses_what_it_did_not_write() {
        for bad in ["", "s2.", "s1.1/0:0", "s1.1/0:0:x", "s1.1:0:0", "s1.1/0:0:1:2"] {
            assert_eq!(Session::parse(bad), Err(InvalidSession), "{bad}");
        }
        assert_eq!(Session::parse("s1."), Ok(Session::default()));
        let long = format!("s1.{}", "1/0:0:1,".repeat(limits::SESSION_BYTES_MAX / 8));
        assert_eq!(Session::parse(&long), Err(InvalidSession));
        let longest = ShardId { collection: CollectionId(u64::MAX), index: u32::MAX };
        assert!(format!("{longest}:{}:{},", u64::MAX, u64::MAX).len() <= 75, "the limit's arithmetic");
    }
}
