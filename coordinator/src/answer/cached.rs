//! A language model's text, once per prompt: found again, or written and kept when it is whole.

use std::sync::Arc;
use std::time::Instant;

use futures::{StreamExt, stream};

use super::ask_model;
use crate::api::auth::Caller;
use crate::cache::answers::{ANSWER_BYTES_MAX, AnswerCache, StoredAnswer};
use crate::cache::key::CacheKey;
use crate::cache::turn::{Looked, Turn};
use crate::generate::pool::Generation;
use crate::generate::{EventStream, FinishReason, GenerateError, GenerateEvent, GenerateRequest};
use crate::services::Services;

/// Generates, or gives the text that was kept for the same prompt, model and options of the same tenant. A kept text has cost no tokens
/// and so reports no usage. What a model wrote that stood in is not kept. Of equal requests that are not streamed one is written at a
/// time: the others wait a while for it, where a stream would rather begin.
///
/// Errors and Cancel: as [`ask_model`]. A text that was not read to its end is not kept; who waited for it goes on.
pub(super) async fn generate(
    services: &Services,
    caller: &Caller,
    request: GenerateRequest,
    deadline: Instant,
    is_streamed: bool,
) -> Result<Generation, GenerateError> {
    let Some(answers) = &services.answers else { return ask_model(services, caller, request, deadline).await };
    let key = answers.key(&services.llm.identities(), &request);
    let looked = if is_streamed {
        answers.get(&key).await.map_or_else(|| Looked::Missing(Turn::default()), Looked::Found)
    } else {
        answers.get_or_begin(&key, deadline).await
    };
    let turn = match looked {
        Looked::Found(kept) => return Ok(replay(&kept)),
        Looked::Missing(turn) => turn,
    };
    let asked = request.model.clone();
    let generation = ask_model(services, caller, request, deadline).await?;
    if !services.llm.is_first_choice(asked.as_deref(), &generation.model) {
        return Ok(generation);
    }
    let draft = StoredAnswer {
        backend: generation.backend.clone(),
        model: generation.model.clone(),
        text: String::new(),
        is_complete: false,
    };
    let keeper = Keeper { answers: Arc::clone(answers), key, _turn: turn };
    Ok(Generation { events: keep(generation.events, keeper, draft), ..generation })
}

fn replay(kept: &StoredAnswer) -> Generation {
    let finish_reason = if kept.is_complete { FinishReason::Stop } else { FinishReason::Length };
    let delta = (!kept.text.is_empty()).then(|| Ok(GenerateEvent::Delta(kept.text.clone())));
    let events = delta.into_iter().chain([Ok(GenerateEvent::Done { finish_reason })]);
    let events: Vec<Result<GenerateEvent, GenerateError>> = events.collect();
    Generation { backend: kept.backend.clone(), model: kept.model.clone(), events: stream::iter(events).boxed() }
}

/// Where a text goes once it has ended well. Equal requests wait until it is dropped.
struct Keeper {
    answers: Arc<AnswerCache>,
    key: CacheKey,
    _turn: Turn,
}

/// Passes the events on as they come, and keeps the text once it has ended well.
fn keep(mut events: EventStream, keeper: Keeper, mut draft: StoredAnswer) -> EventStream {
    async_stream::stream! {
        // A local, so that the turn ends with the last event.
        let keeper = keeper;
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
                        keeper.answers.put(&keeper.key, std::mem::take(&mut draft));
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
