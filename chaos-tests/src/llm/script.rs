//! What a scripted server does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

/// One server's behaviour.
#[derive(Clone, Debug)]
pub struct Script {
    /// The answer, token by token.
    pub tokens: Vec<String>,
    /// From the request to the first token.
    pub first_token: Duration,
    /// From one token to the next.
    pub token_gap: Duration,
    /// Generations at one time; further ones are refused with 503.
    pub at_once_max: usize,
    /// How an answer ends.
    pub ending: Ending,
    /// Each token waits for a step besides, so that a test says when it leaves.
    pub steps: Option<Steps>,
    /// Share of the KV cache said to be in use, beside the true number of running generations.
    pub kv_used: f32,
    /// Share of the model said to lie in GPU memory; `None`: the model is not loaded.
    pub on_gpu: Option<f32>,
    /// Answers with the text of the prompt's first source instead of `tokens`, so that what was asked with can be told from the answer.
    pub quotes: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            tokens: ["Lift ", "is ", "made ", "by ", "the ", "wing ", "[1]", "."].map(str::to_owned).into(),
            first_token: Duration::ZERO,
            token_gap: Duration::ZERO,
            at_once_max: usize::MAX,
            ending: Ending::Complete,
            steps: None,
            kv_used: 0.0,
            on_gpu: Some(1.0),
            quotes: false,
        }
    }
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// Well, with its last record.
    #[default]
    Complete,
    /// Silence after so many tokens.
    Stall {
        /// Tokens.
        after: usize,
    },
    /// An error in the protocol's own words after so many tokens.
    Error {
        /// Tokens.
        after: usize,
    },
    /// The connection is closed after so many tokens.
    Cut {
        /// Tokens.
        after: usize,
    },
    /// A record that breaks off within a character, and then a proper end of the body.
    TruncatedText {
        /// Tokens.
        after: usize,
    },
}

impl Ending {
    /// Tokens that are sent of `count`.
    pub(super) fn tokens(self, count: usize) -> usize {
        match self {
            Self::Complete => count,
            Self::Stall { after } | Self::Error { after } | Self::Cut { after } | Self::TruncatedText { after } => {
                after.min(count)
            }
        }
    }
}

/// Lets tokens go one by one.
#[derive(Clone, Debug)]
pub struct Steps(Arc<Semaphore>);

impl Default for Steps {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }
}

impl Steps {
    /// Lets so many more tokens go.
    pub fn allow(&self, tokens: usize) {
        self.0.add_permits(tokens);
    }

    /// Waits for one.
    pub(super) async fn take(&self) {
        if let Ok(step) = self.0.acquire().await {
            step.forget();
        }
    }
}
