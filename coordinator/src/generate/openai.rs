//! The OpenAI protocol's chat completions (OpenAI, vLLM, llama.cpp, TGI): server-sent events, ended by `[DONE]`.

use std::collections::VecDeque;

use futures::future::BoxFuture;
use reqwest::{Client, RequestBuilder};
use serde::Deserialize;
use serde_json::{Value, json};

use super::backend::{Backend, BackendError, Report};
use super::frames::EventData;
use super::stream::{self, Decoder, message_of};
use super::vllm;
use super::{AnswerFormat, EventStream, FinishReason, GenerateEvent, GenerateRequest, Usage};

/// A server that speaks the OpenAI protocol.
pub struct OpenAi {
    name: String,
    url: String,
    model: String,
    api_key: Option<String>,
    client: Client,
    /// Where vLLM's metrics are.
    metrics_url: Option<String>,
}

impl OpenAi {
    /// A server whose endpoints stand below `url` (`https://host/v1`), asked for `model` where a request names none.
    pub fn new(name: String, url: String, model: String, api_key: Option<String>, client: Client) -> Self {
        Self { name, url, model, api_key, client, metrics_url: None }
    }

    /// The same for vLLM, which tells its load at `/metrics` beside `/v1`.
    pub fn vllm(name: String, url: String, model: String, api_key: Option<String>, client: Client) -> Self {
        let root = url.strip_suffix("/v1").unwrap_or(&url);
        let metrics_url = Some(format!("{root}/metrics"));
        Self { metrics_url, ..Self::new(name, url, model, api_key, client) }
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    fn body(&self, request: &GenerateRequest) -> Value {
        let options = &request.options;
        let messages: Vec<Value> = request
            .messages
            .iter()
            .map(|message| json!({"role": message.role.as_str(), "content": message.content}))
            .collect();
        let mut body = json!({
            "model": request.model.as_ref().unwrap_or(&self.model),
            "messages": messages,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                body[name] = value;
            }
        };
        put("max_tokens", options.max_tokens.map(Value::from));
        put("temperature", options.temperature.map(Value::from));
        put("top_p", options.top_p.map(Value::from));
        put("seed", options.seed.map(Value::from));
        put("stop", (!options.stop.is_empty()).then(|| json!(options.stop)));
        put("response_format", options.format.as_ref().map(format_value));
        body
    }
}

fn format_value(format: &AnswerFormat) -> Value {
    match format {
        AnswerFormat::Json => json!({"type": "json_object"}),
        AnswerFormat::Schema(schema) => {
            json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}})
        }
    }
}

impl Backend for OpenAi {
    fn name(&self) -> &str {
        &self.name
    }

    fn url(&self) -> &str {
        &self.url
    }

    fn model(&self) -> &str {
        &self.model
    }

    fn generate(&self, request: GenerateRequest) -> BoxFuture<'_, Result<EventStream, BackendError>> {
        Box::pin(async move {
            let call = self.client.post(format!("{}/chat/completions", self.url)).json(&self.body(&request));
            let response = stream::send(self.authorized(call)).await?;
            Ok(stream::events(self.name.clone(), response, OpenAiDecoder::default()))
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<Report, BackendError>> {
        Box::pin(async move {
            let url = self.metrics_url.clone().unwrap_or_else(|| format!("{}/models", self.url));
            match stream::send(self.authorized(self.client.get(url))).await {
                Ok(response) if self.metrics_url.is_some() => {
                    Ok(vllm::report(&String::from_utf8_lossy(&stream::body(response).await?)))
                }
                // Servers that speak only a part of the protocol are up all the same.
                Ok(_) | Err(BackendError::Refused { .. }) => Ok(Report::default()),
                Err(error) => Err(error),
            }
        })
    }
}

#[derive(Default)]
pub(super) struct OpenAiDecoder {
    events: EventData,
    state: Answer,
}

/// What the end of the answer is made of; `usage` comes in a chunk after the one with the reason.
#[derive(Default)]
struct Answer {
    finish_reason: Option<FinishReason>,
    usage: Option<Usage>,
    is_done: bool,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<ChunkUsage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    finish_reason: Option<String>,
}

/// Reasoning (`reasoning_content`, `reasoning`) is not part of the answer.
#[derive(Default, Deserialize)]
struct Delta {
    content: Option<String>,
}

#[derive(Deserialize)]
struct ChunkUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

impl Decoder for OpenAiDecoder {
    fn push(&mut self, bytes: &[u8], events: &mut VecDeque<GenerateEvent>) -> Result<(), String> {
        let state = &mut self.state;
        let mut decoded = Ok(());
        self.events
            .push(bytes, |data| {
                if decoded.is_ok() {
                    decoded = state.take(data, events);
                }
            })
            .map_err(|error| error.to_string())?;
        decoded
    }

    fn finish(&mut self, events: &mut VecDeque<GenerateEvent>) -> Result<(), String> {
        if let Some(data) = self.events.finish() {
            self.state.take(&data, events)?;
        }
        // Some servers close after the last chunk without the closing word.
        if self.state.finish_reason.is_some() {
            self.state.end(events);
        }
        if self.state.is_done { Ok(()) } else { Err("the answer ended before its last chunk".to_owned()) }
    }
}

impl Answer {
    fn take(&mut self, data: &[u8], events: &mut VecDeque<GenerateEvent>) -> Result<(), String> {
        let data = data.trim_ascii();
        if self.is_done || data.is_empty() {
            return Ok(());
        }
        if data == b"[DONE]" {
            self.end(events);
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_slice(data).map_err(|error| format!("an event is not a chunk: {error}"))?;
        if let Some(error) = chunk.error {
            return Err(message_of(&error).unwrap_or_else(|| error.to_string()));
        }
        if let Some(choice) = chunk.choices.into_iter().next() {
            if let Some(text) = choice.delta.content.filter(|text| !text.is_empty()) {
                events.push_back(GenerateEvent::Delta(text));
            }
            if let Some(reason) = choice.finish_reason {
                self.finish_reason = Some(FinishReason::parse(&reason));
            }
        }
        if let Some(usage) = chunk.usage {
            self.usage = Some(Usage { prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens });
        }
        Ok(())
    }

    fn end(&mut self, events: &mut VecDeque<GenerateEvent>) {
        if !std::mem::replace(&mut self.is_done, true) {
            events.extend(self.usage.map(GenerateEvent::Usage));
            let finish_reason = self.finish_reason.unwrap_or(FinishReason::Stop);
            events.push_back(GenerateEvent::Done { finish_reason });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{GenerateOptions, Message, Role};
    use super::*;

    const STREAM: &str = concat!(
        r#"data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
        "\n\n: ping\n\n",
        r#"data: {"choices":[{"index":0,"delta":{"content":"Hé"},"finish_reason":null}],"usage":null}"#,
        "\r\n\r\n",
        r#"data: {"choices":[{"index":0,"delta":{"reasoning_content":"hm"},"finish_reason":null}]}"#,
        "\n\n",
        r#"data: {"choices":[{"index":0,"delta":{"content":" there"},"finish_reason":null}]}"#,
        "\n\n",
        r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#,
        "\n\n",
        r#"data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}"#,
        "\n\n",
        "data: [DONE]\n\n",
    );

    fn expected() -> Vec<GenerateEvent> {
        vec![
            GenerateEvent::Delta("Hé".into()),
            GenerateEvent::Delta(" there".into()),
            GenerateEvent::Usage(Usage { prompt_tokens: 5, completion_tokens: 2 }),
            GenerateEvent::Done { finish_reason: FinishReason::Length },
        ]
    }

    fn decode(pieces: &[&[u8]]) -> Result<Vec<GenerateEvent>, String> {
        let mut decoder = OpenAiDecoder::default();
        let mut events = VecDeque::new();
        for piece in pieces {
            decoder.push(piece, &mut events)?;
        }
        decoder.finish(&mut events)?;
        Ok(events.into())
    }

    #[test]
    fn the_body_has_the_protocols_names_and_no_top_k() {
        let openai = OpenAi::new("a".into(), "http://x/v1".into(), "m".into(), None, Client::new());
        let options = GenerateOptions {
            max_tokens: Some(9),
            temperature: Some(0.5),
            top_k: Some(20),
            ..GenerateOptions::default()
        };
        let messages = vec![Message { role: Role::System, content: "s".into() }];
        let body = openai.body(&GenerateRequest { messages, options, ..GenerateRequest::default() });
        assert_eq!(
            body,
            json!({
                "model": "m", "messages": [{"role": "system", "content": "s"}], "stream": true,
                "stream_options": {"include_usage": true}, "max_tokens": 9, "temperature": 0.5,
            })
        );
    }

    #[test]
    fn an_error_within_the_stream_and_a_cut_stream_are_errors() {
        let failed = b"data: {\"error\":{\"message\":\"overloaded\",\"type\":\"server_error\"}}\n\n";
        assert_eq!(decode(&[failed]), Err("overloaded".into()));
        let cut = STREAM.find("\"length\"").expect("present");
        assert!(decode(&[&STREAM.as_bytes()[..cut]]).is_err());
        let unclosed = STREAM.find("data: [DONE]").expect("present");
        assert_eq!(decode(&[&STREAM.as_bytes()[..unclosed]]), Ok(expected()), "closing without [DONE] is common");
    }

    proptest! {
        #[test]
        fn the_events_do_not_depend_on_how_the_bytes_are_cut(
            cuts in proptest::collection::vec(0..=STREAM.len(), 0..20),
        ) {
            let bytes = STREAM.as_bytes();
            let mut places: Vec<usize> = cuts.into_iter().chain([0, bytes.len()]).collect();
            places.sort_unstable();
            let pieces: Vec<&[u8]> = places.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(decode(&pieces), Ok(expected()));
        }
    }
}
