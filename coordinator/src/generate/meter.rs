//! What an answer took, told once however it ends: whole, broken, or left by its client in the middle. Where the backend does not say,
//! it is estimated: a client that hangs up before the last record is not given its tokens for nothing.

use futures::StreamExt;

use super::prompt::estimate_tokens;
use super::{EventStream, GenerateEvent, Message, Usage};

/// Tokens of a conversation, estimated.
pub fn prompt_tokens(messages: &[Message]) -> u64 {
    messages.iter().map(|message| estimate_tokens(&message.content) as u64).sum()
}

/// Passes `events` on, with a usage in each whole answer, and calls `spent` once: at the answer's end, or when the stream is dropped
/// before. `prompt_tokens` is what was read where the backend does not say.
pub fn metered(mut events: EventStream, prompt_tokens: u64, spent: impl FnOnce(Usage) + Send + 'static) -> EventStream {
    let mut meter = Meter { prompt_tokens, written_bytes: 0, told: None, spent: Some(spent) };
    async_stream::stream! {
        while let Some(event) = events.next().await {
            match &event {
                Ok(GenerateEvent::Delta(text)) => meter.written_bytes += text.len(),
                Ok(GenerateEvent::Usage(usage)) => meter.told = Some(*usage),
                Ok(GenerateEvent::Done { .. }) => {
                    if meter.told.is_none() {
                        yield Ok(GenerateEvent::Usage(meter.usage()));
                    }
                    // Before the end is shown: whoever asks again after it is measured by what this one took.
                    meter.tell();
                }
                Err(_) => meter.tell(),
            }
            yield event;
        }
    }
    .boxed()
}

struct Meter<F: FnOnce(Usage)> {
    prompt_tokens: u64,
    written_bytes: usize,
    /// What the backend says.
    told: Option<Usage>,
    spent: Option<F>,
}

impl<F: FnOnce(Usage)> Meter<F> {
    fn usage(&self) -> Usage {
        let completion_tokens = self.written_bytes.div_ceil(3) as u64;
        self.told.unwrap_or(Usage { prompt_tokens: self.prompt_tokens, completion_tokens })
    }

    fn tell(&mut self) {
        let usage = self.usage();
        if let Some(spent) = self.spent.take() {
            spent(usage);
        }
    }
}

impl<F: FnOnce(Usage)> Drop for Meter<F> {
    fn drop(&mut self) {
        self.tell();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::stream;
    use parking_lot::Mutex;

    use super::super::{FinishReason, GenerateError};
    use super::*;

    const SAID: Usage = Usage { prompt_tokens: 7, completion_tokens: 2 };

    fn delta() -> GenerateEvent {
        GenerateEvent::Delta("abcdef".into())
    }

    fn done() -> GenerateEvent {
        GenerateEvent::Done { finish_reason: FinishReason::Stop }
    }

    /// Reads at most `read` events of a metered answer; what came and what was told.
    async fn run(events: Vec<Result<GenerateEvent, GenerateError>>, read: usize) -> (Vec<GenerateEvent>, Vec<Usage>) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&told);
        let events = metered(stream::iter(events).boxed(), 100, move |usage| noted.lock().push(usage));
        let came: Vec<_> = events.take(read).collect().await;
        let told = told.lock().clone();
        (came.into_iter().filter_map(Result::ok).collect(), told)
    }

    #[tokio::test]
    async fn what_the_backend_says_counts_and_is_passed_on_once() {
        let (came, told) = run(vec![Ok(delta()), Ok(GenerateEvent::Usage(SAID)), Ok(done())], 9).await;
        assert_eq!((came, told), (vec![delta(), GenerateEvent::Usage(SAID), done()], vec![SAID]));
    }

    #[tokio::test]
    async fn what_it_does_not_say_is_estimated() {
        let estimated = Usage { prompt_tokens: 100, completion_tokens: 2 };
        let (came, told) = run(vec![Ok(delta()), Ok(done())], 9).await;
        assert_eq!((came, told), (vec![delta(), GenerateEvent::Usage(estimated), done()], vec![estimated]));
    }

    #[tokio::test]
    async fn an_answer_that_is_left_or_breaks_is_told_too() {
        let estimated = |completion_tokens| vec![Usage { prompt_tokens: 100, completion_tokens }];
        assert_eq!(run(vec![Ok(delta()), Ok(delta()), Ok(done())], 1).await.1, estimated(2));
        assert_eq!(run(vec![Ok(delta()), Err(GenerateError::DeadlineExceeded)], 9).await.1, estimated(2));
        assert_eq!(run(vec![Ok(delta())], 0).await.1, estimated(0), "the backend has read the prompt");
    }
}
