//! Several processes on a few documents: puts, deletes, strong and bounded reads of the same ones at the same time.
//!
//! Half of the bounded reads are of documents at rest: what was written longer ago than a bound allows to miss is seldom a document in use.

use std::collections::VecDeque;
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
/// Documents at rest that are still read.
const RESTING_MAX: usize = 64;
/// Between two calls of a process.
const PAUSE: Duration = Duration::from_millis(8);

/// The documents in use, shared by the processes.
pub struct Keys {
    numbers: Arc<Numbers>,
    in_use: Mutex<Vec<(Key, u32)>>,
    /// The last ones, in the order of their retirement.
    resting: Mutex<VecDeque<Key>>,
}

impl Keys {
    /// A first set.
    pub fn new(numbers: Arc<Numbers>) -> Self {
        let in_use = (0..KEYS).map(|_| (numbers.key(), 0)).collect();
        Self { numbers, in_use: Mutex::new(in_use), resting: Mutex::default() }
    }

    fn pick(&self, random: &mut StdRng) -> Key {
        let mut in_use = self.in_use.lock().expect("no panic while held");
        let slot = random.random_range(0..in_use.len());
        let (key, calls) = &mut in_use[slot];
        let picked = *key;
        *calls += 1;
        if *calls >= CALLS_PER_KEY {
            (*key, *calls) = (self.numbers.key(), 0);
            let mut resting = self.resting.lock().expect("no panic while held");
            if resting.len() == RESTING_MAX {
                resting.pop_front();
            }
            resting.push_back(picked);
        }
        picked
    }

    fn pick_resting(&self, random: &mut StdRng) -> Option<Key> {
        let resting = self.resting.lock().expect("no panic while held");
        (!resting.is_empty()).then(|| resting[random.random_range(0..resting.len())])
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
            40..48 => {
                documents.read(key, Level::Bounded, "").await;
            }
            48..56 => {
                let key = keys.pick_resting(&mut random).unwrap_or(key);
                documents.read(key, Level::Bounded, "").await;
            }
            56..90 => {
                documents.put(&[(key, numbers.version())]).await;
            }
            _ => {
                documents.delete(key).await;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
