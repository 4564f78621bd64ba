//! A language model's text, once per prompt: found again, or written and kept when it is whole.

use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};

use crate::cache::answers::{ANSWER_BYTES_MAX, AnswerCache, StoredAnswer};
use crate::cache::key::CacheKey;
use crate::generate::pool::{Generation, Pool};
use crate::generate::{EventStream, FinishReason, GenerateError, GenerateEvent, GenerateRequest};

/// Generates, or gives the text that was kept for the same prompt, model and options of the same tenant. A kept text has cost no tokens
/// and so reports no usage. `answers` is `None` where caching is switched off.
///
/// Errors and Cancel: as [`Pool::generate`]. A text that was not read to its end is not kept.
pub(super) fn generate<'a>(
    answers: Option<&'a Arc<AnswerCache>>,
    tenant: &'a str,
    pool: &'a Pool,
    request: GenerateRequest,
    deadline: Instant,
) -> BoxFuture<'a, Result<Generation, GenerateError>> {
    async move {
        let Some(answers) = answers else { return pool.generate(request, deadline).await };
        let key = answers.key(tenant, &request);
        if let Some(kept) = answers.get(&key).await {
            return Ok(replay(&kept));
        }
        let generation = pool.generate(request, deadline).await?;
        let draft = StoredAnswer {
            backend: generation.backend.clone(),
            model: generation.model.clone(),
            text: String::new(),
            is_complete: false,
        };
        Ok(Generation { events: keep(generation.events, Arc::clone(answers), key, draft), ..generation })
    }
    .boxed()
}

fn replay(kept: &StoredAnswer) -> Generation {
    let finish_reason = if kept.is_complete { FinishReason::Stop } else { FinishReason::Length };
    let delta = (!kept.text.is_empty()).then(|| Ok(GenerateEvent::Delta(kept.text.clone())));
    let events = delta.into_iter().chain([Ok(GenerateEvent::Done { finish_reason })]);
    let events: Vec<Result<GenerateEvent, GenerateError>> = events.collect();
    Generation { backend: kept.backend.clone(), model: kept.model.clone(), events: stream::iter(events).boxed() }
}

/// Passes the events on as they come, and keeps the text once it has ended well.
fn keep(mut events: EventStream, answers: Arc<AnswerCache>, key: CacheKey, mut draft: StoredAnswer) -> EventStream {
    async_stream::stream! {
        let mut fits = true;
        while let Some(event) = events.next().await {
            match &event {
                Ok(GenerateEvent::Delta(piece)) => {
                    fits &= draft.text.len() + piece.len() <= ANSWER_BYTES_MAX;
                    if fits {
                        draft.text.push_str(piece);
                    }
                }
                Ok(GenerateEvent::Done { finish_reason }) if fits && !draft.text.is_empty() => match finish_reason {
                    FinishReason::Stop | FinishReason::Length => {
                        draft.is_complete = *finish_reason == FinishReason::Stop;
                        answers.put(&key, std::mem::take(&mut draft));
                    }
                    FinishReason::ContentFilter | FinishReason::Other => {}
                },
                Ok(_) | Err(_) => {}
            }
            yield event;
        }
    }
    .boxed()
}
