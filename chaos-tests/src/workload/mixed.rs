//! Several processes on a few documents: puts, deletes, strong and bounded reads of the same ones at the same time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use super::documents::{Documents, Numbers};
use crate::history::{Key, Level};

/// Documents worked on at a time.
const KEYS: usize = 6;
/// Calls after which a document rests, so that the checker's search stays short.
const CALLS_PER_KEY: u32 = 120;
/// Between two calls of a process.
const PAUSE: Duration = Duration::from_millis(8);

/// The documents in use, shared by the processes.
pub struct Keys {
    numbers: Arc<Numbers>,
    in_use: Mutex<Vec<(Key, u32)>>,
}

impl Keys {
    /// A first set.
    pub fn new(numbers: Arc<Numbers>) -> Self {
        let in_use = (0..KEYS).map(|_| (numbers.key(), 0)).collect();
        Self { numbers, in_use: Mutex::new(in_use) }
    }

    fn pick(&self, random: &mut StdRng) -> Key {
        let mut in_use = self.in_use.lock().expect("no panic while held");
        let slot = random.random_range(0..in_use.len());
        let (key, calls) = &mut in_use[slot];
        let picked = *key;
        *calls += 1;
        if *calls >= CALLS_PER_KEY {
            (*key, *calls) = (self.numbers.key(), 0);
        }
        picked
    }
}

/// Works until `stop`. Which call comes next follows from `seed`.
pub async fn run(documents: Documents, numbers: Arc<Numbers>, keys: Arc<Keys>, seed: u64, stop: CancellationToken) {
    let mut random = StdRng::seed_from_u64(seed);
    while !stop.is_cancelled() {
        let key = keys.pick(&mut random);
        match random.random_range(0..100) {
            0..40 => {
                documents.read(key, Level::Strong, "").await;
            }
            40..55 => {
                documents.read(key, Level::Bounded, "").await;
            }
            55..90 => {
                documents.put(&[(key, numbers.version())]).await;
            }
            _ => {
                documents.delete(key).await;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
