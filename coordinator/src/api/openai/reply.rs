//! The bodies of answers, whole and as chunks, of the chat and of the older text endpoint: one envelope, two spellings.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::doors::{Reply, Whole};
use super::super::error::{error_body, status_of};
use super::super::query::{citation_body, source_bodies};
use super::super::request_id::{current_request_id, with_request_id};
use super::error_value;
use crate::answer::AnswerEvent;
use crate::clock::unix_ms;
use crate::generate::{Citation, Usage};

/// Comment lines keep idle connections open while a model thinks.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Which of the two endpoints speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    Chat,
    Text,
}

/// What is equal in all chunks of an answer.
pub(super) struct Envelope {
    spelling: Spelling,
    id: String,
    created: i64,
    model: String,
}

impl Envelope {
    pub(super) fn new(spelling: Spelling, model: String) -> Self {
        let prefix = if spelling == Spelling::Chat { "chatcmpl" } else { "cmpl" };
        Self { spelling, id: format!("{prefix}-{}", Uuid::now_v7().simple()), created: unix_ms() / 1000, model }
    }

    fn body(&self, object: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }

    /// The answer in one body.
    pub(super) fn whole(&self, whole: Whole, sources: Value, session: Option<String>) -> Value {
        let reason = whole.finish_reason.as_str();
        let mut body = match self.spelling {
            Spelling::Chat => {
                let message = json!({"role": "assistant", "content": whole.text, "refusal": null});
                let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": reason});
                self.body("chat.completion", json!([choice]))
            }
            Spelling::Text => {
                let choice = json!({"index": 0, "text": whole.text, "logprobs": null, "finish_reason": reason});
                self.body("text_completion", json!([choice]))
            }
        };
        body["usage"] = usage_value(whole.usage);
        if let Some(session) = session {
            body["session"] = session.into();
            body["sources"] = sources;
            body["citations"] = citation_values(whole.citations);
        }
        body
    }

    fn chunk(&self, text: Option<&str>, role: Option<&str>, finish_reason: Option<&str>) -> Value {
        match self.spelling {
            Spelling::Chat => {
                let mut delta = json!({});
                if let Some(role) = role {
                    delta["role"] = role.into();
                }
                if let Some(text) = text {
                    delta["content"] = text.into();
                }
                let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason});
                self.body("chat.completion.chunk", json!([choice]))
            }
            Spelling::Text => {
                let text = text.unwrap_or_default();
                let choice = json!({"index": 0, "text": text, "logprobs": null, "finish_reason": finish_reason});
                self.body("text_completion", json!([choice]))
            }
        }
    }

    /// The answer as it comes. Dropping the response drops the events, and with them the backend's connection.
    pub(super) fn stream(self, reply: Reply, with_usage: bool) -> Response {
        let request_id = current_request_id();
        let sources = source_bodies(&reply.sources);
        let (mut events, session) = (reply.events, reply.session);
        let stream = async_stream::stream! {
            let event = |data: Value| Ok::<_, Infallible>(Event::default().data(data.to_string()));
            if self.spelling == Spelling::Chat || session.is_some() {
                let mut first = self.chunk(Some(""), Some("assistant"), None);
                if let Some(session) = &session {
                    first["sources"] = json!(sources);
                    first["session"] = session.as_str().into();
                }
                yield event(first);
            }
            let (mut citations, mut usage) = (Vec::new(), Usage::default());
            while let Some(next) = events.next().await {
                match next {
                    AnswerEvent::Delta(text) => yield event(self.chunk(Some(&text), None, None)),
                    AnswerEvent::Citation(citation) => citations.push(citation),
                    AnswerEvent::Usage(spent) => usage = spent,
                    AnswerEvent::Done(reason) => {
                        let mut last = self.chunk(None, None, Some(reason.as_str()));
                        if session.is_some() {
                            last["citations"] = citation_values(citations);
                        }
                        yield event(last);
                        if with_usage {
                            let object =
                                if self.spelling == Spelling::Chat { "chat.completion.chunk" } else { "text_completion" };
                            let mut spent = self.body(object, json!([]));
                            spent["usage"] = usage_value(usage);
                            yield event(spent);
                        }
                        yield Ok(Event::default().data("[DONE]"));
                        return;
                    }
                    AnswerEvent::Failed(error) => {
                        let body = with_request_id(request_id.clone(), async { error_body(&error) }).await;
                        yield event(error_value(status_of(error.kind()), &body.error));
                        return;
                    }
                }
            }
        };
        Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE_INTERVAL)).into_response()
    }
}

fn usage_value(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}

fn citation_values(citations: Vec<Citation>) -> Value {
    json!(citations.into_iter().map(citation_body).collect::<Vec<_>>())
}
