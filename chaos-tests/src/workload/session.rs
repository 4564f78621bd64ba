//! One session: it writes documents of its own, and reads them with the token it was given last, whichever copy answers.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use super::documents::{Documents, Numbers};
use crate::history::{Key, Level};

/// Documents of a session.
const KEYS: usize = 4;
/// Between two calls.
const PAUSE: Duration = Duration::from_millis(10);

/// Works until `stop`. A call without an answer leaves the token as it was.
pub async fn run(documents: Documents, numbers: Arc<Numbers>, seed: u64, stop: CancellationToken) {
    let mut random = StdRng::seed_from_u64(seed);
    let keys: Vec<Key> = (0..KEYS).map(|_| numbers.key()).collect();
    let mut session = "s1.".to_owned();
    while !stop.is_cancelled() {
        let Some(key) = keys.choose(&mut random).copied() else { return };
        let token = match random.random_range(0..100) {
            0..60 => documents.read(key, Level::Session, &session).await.map(|found| found.session),
            60..90 => documents.put(&[(key, numbers.version())]).await.map(|written| raised(&session, &written)),
            _ => documents.delete(key).await.map(|written| raised(&session, &written)),
        };
        if let Some(token) = token {
            session = token;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A write's token names only the shards it went to: the session keeps the higher position of each.
fn raised(session: &str, written: &str) -> String {
    let mut tokens = super::documents::tokens(session);
    for (shard, lineage, seqno) in super::documents::tokens(written) {
        match tokens.iter_mut().find(|(known, ..)| *known == shard) {
            Some(known) if (known.1, known.2) < (lineage, seqno) => (known.1, known.2) = (lineage, seqno),
            Some(_) => {}
            None => tokens.push((shard, lineage, seqno)),
        }
    }
    let parts: Vec<String> =
        tokens.iter().map(|(shard, lineage, seqno)| format!("{shard}:{lineage}:{seqno}")).collect();
    format!("s1.{}", parts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shard_keeps_its_highest_position() {
        assert_eq!(raised("s1.1/0:0:5,1/1:0:9", "s1.1/0:0:7,1/1:0:8,1/2:0:1"), "s1.1/0:0:7,1/1:0:9,1/2:0:1");
        assert_eq!(raised("s1.", "s1.1/0:0:7"), "s1.1/0:0:7");
    }
}
