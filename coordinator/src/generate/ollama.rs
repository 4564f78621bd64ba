//! Ollama's chat endpoint: one JSON object per line, the last one with `done: true` and the counts.

use std::collections::VecDeque;

use futures::future::BoxFuture;
use reqwest::Client;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::backend::{Backend, BackendError, Report};
use super::frames::Lines;
use super::prompt::estimate_tokens;
use super::stream::{self, Decoder, message_of};
use super::{AnswerFormat, EventStream, FinishReason, GenerateEvent, GenerateRequest, Usage};

/// Context asked for at least. Ollama's own default is small, and it drops what does not fit without a word.
const CONTEXT_TOKENS_MIN: usize = 4096;
/// Context asked for at most; beyond it the backend's own limits rule.
const CONTEXT_TOKENS_MAX: usize = 131_072;
/// Room for the chat template's own tokens.
const TEMPLATE_TOKENS: usize = 128;

/// An Ollama server.
pub struct Ollama {
    name: String,
    url: String,
    model: String,
    client: Client,
}

impl Ollama {
    /// A server at `url` (`http://host:11434`), asked for `model` where a request names none.
    pub fn new(name: String, url: String, model: String, client: Client) -> Self {
        Self { name, url, model, client }
    }

    fn body(&self, request: &GenerateRequest) -> Value {
        let options = &request.options;
        let mut sent = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                sent.insert(name.to_owned(), value);
            }
        };
        put("num_predict", options.max_tokens.map(Value::from));
        put("temperature", options.temperature.map(Value::from));
        put("top_k", options.top_k.map(Value::from));
        put("top_p", options.top_p.map(Value::from));
        put("seed", options.seed.map(Value::from));
        put("num_gpu", options.gpu_layers.map(Value::from));
        put("stop", (!options.stop.is_empty()).then(|| json!(options.stop)));
        put("num_ctx", Some(Value::from(context_tokens(request))));
        let messages: Vec<Value> = request
            .messages
            .iter()
            .map(|message| json!({"role": message.role.as_str(), "content": message.content}))
            .collect();
        let mut body = json!({
            "model": request.model.as_ref().unwrap_or(&self.model),
            "messages": messages,
            "stream": true,
            "options": sent,
        });
        match &options.format {
            None => {}
            Some(AnswerFormat::Json) => body["format"] = "json".into(),
            Some(AnswerFormat::Schema(schema)) => body["format"] = schema.clone(),
        }
        body
    }
}

/// Prompt and answer, rounded up to a power of two: Ollama loads the model anew for each other context size.
fn context_tokens(request: &GenerateRequest) -> usize {
    let prompt: usize = request.messages.iter().map(|message| estimate_tokens(&message.content)).sum();
    let answer = request.options.max_tokens.unwrap_or(0) as usize;
    (prompt + answer + TEMPLATE_TOKENS).next_power_of_two().clamp(CONTEXT_TOKENS_MIN, CONTEXT_TOKENS_MAX)
}

impl Backend for Ollama {
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
            let call = self.client.post(format!("{}/api/chat", self.url)).json(&self.body(&request));
            let response = stream::send(call).await?;
            Ok(stream::events(self.name.clone(), response, OllamaDecoder::default()))
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<Report, BackendError>> {
        Box::pin(async move {
            match stream::send(self.client.get(format!("{}/api/ps", self.url))).await {
                Ok(response) => Ok(report(&stream::body(response).await?, &self.model)),
                // Servers that speak only a part of the protocol are up all the same.
                Err(BackendError::Refused { .. }) => Ok(Report::default()),
                Err(error) => Err(error),
            }
        })
    }
}

/// Reads `/api/ps`: the models in memory, and how much of each lies on the GPU.
fn report(body: &[u8], model: &str) -> Report {
    #[derive(Deserialize)]
    struct Loaded {
        #[serde(default)]
        models: Vec<LoadedModel>,
    }
    #[derive(Deserialize)]
    struct LoadedModel {
        name: String,
        #[serde(default)]
        size: u64,
        #[serde(default)]
        size_vram: u64,
    }
    let Ok(loaded) = serde_json::from_slice::<Loaded>(body) else { return Report::default() };
    let is_ours = |name: &str| name == model || name.strip_suffix(":latest") == Some(model);
    let on_gpu = match loaded.models.iter().find(|other| is_ours(&other.name)) {
        Some(found) if found.size > 0 => (found.size_vram as f64 / found.size as f64).clamp(0.0, 1.0) as f32,
        _ => 0.0,
    };
    Report { on_gpu: Some(on_gpu), ..Report::default() }
}

#[derive(Default)]
pub(super) struct OllamaDecoder {
    lines: Lines,
    is_done: bool,
}

/// A line of `/api/chat`, and of `/api/generate`, whose text stands in `response`. Reasoning (`thinking`) is not part of the answer.
#[derive(Deserialize)]
struct Line {
    message: Option<LineMessage>,
    response: Option<String>,
    #[serde(default)]
    done: bool,
    done_reason: Option<String>,
    prompt_eval_count: Option<u64>,
    eval_count: Option<u64>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct LineMessage {
    #[serde(default)]
    content: String,
}

impl Decoder for OllamaDecoder {
    fn push(&mut self, bytes: &[u8], events: &mut VecDeque<GenerateEvent>) -> Result<(), String> {
        let Self { lines, is_done } = self;
        let mut decoded = Ok(());
        lines
            .push(bytes, |line| {
                if decoded.is_ok() {
                    decoded = decode_line(line, is_done, events);
                }
                Ok(())
            })
            .map_err(|error| error.to_string())?;
        decoded
    }

    fn finish(&mut self, events: &mut VecDeque<GenerateEvent>) -> Result<(), String> {
        if let Some(line) = self.lines.finish() {
            decode_line(&line, &mut self.is_done, events)?;
        }
        if self.is_done { Ok(()) } else { Err("the answer ended without its last record".to_owned()) }
    }
}

fn decode_line(line: &[u8], is_done: &mut bool, events: &mut VecDeque<GenerateEvent>) -> Result<(), String> {
    if *is_done || line.trim_ascii().is_empty() {
        return Ok(());
    }
    let line: Line = serde_json::from_slice(line).map_err(|error| format!("a line is not a record: {error}"))?;
    if let Some(error) = line.error {
        return Err(message_of(&error).unwrap_or_else(|| error.to_string()));
    }
    let text = line.message.map(|message| message.content).or(line.response).unwrap_or_default();
    if !text.is_empty() {
        events.push_back(GenerateEvent::Delta(text));
    }
    if line.done {
        *is_done = true;
        if line.prompt_eval_count.is_some() || line.eval_count.is_some() {
            events.push_back(GenerateEvent::Usage(Usage {
                prompt_tokens: line.prompt_eval_count.unwrap_or(0),
                completion_tokens: line.eval_count.unwrap_or(0),
            }));
        }
        let finish_reason = line.done_reason.as_deref().map_or(FinishReason::Stop, FinishReason::parse);
        events.push_back(GenerateEvent::Done { finish_reason });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{GenerateOptions, Message, Role};
    use super::*;

    fn request(content: &str, options: GenerateOptions) -> GenerateRequest {
        let messages = vec![Message { role: Role::User, content: content.to_owned() }];
        GenerateRequest { messages, options, ..GenerateRequest::default() }
    }

    #[test]
    fn options_carry_ollamas_names() {
        let ollama = Ollama::new("a".into(), "http://x".into(), "m".into(), Client::new());
        let options = GenerateOptions {
            max_tokens: Some(256),
            temperature: Some(0.5),
            top_k: Some(20),
            gpu_layers: Some(-1),
            stop: vec!["END".into()],
            ..GenerateOptions::default()
        };
        assert_eq!(
            ollama.body(&request("hi", options)),
            json!({
                "model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}],
                "options": {"num_predict": 256, "temperature": 0.5, "top_k": 20, "num_gpu": -1, "stop": ["END"], "num_ctx": 4096},
            })
        );
        let other = GenerateRequest { model: Some("n".into()), ..request("hi", GenerateOptions::default()) };
        assert_eq!(ollama.body(&other)["model"], "n");
    }

    #[test]
    fn what_lies_on_the_gpu_is_read_from_ps() {
        let body =
            br#"{"models":[{"name":"other","size":8,"size_vram":8},{"name":"m:latest","size":8,"size_vram":2}]}"#;
        assert_eq!(report(body, "m").on_gpu, Some(0.25));
        assert_eq!(report(br#"{"models":[]}"#, "m").on_gpu, Some(0.0));
        assert_eq!(report(b"<html>", "m"), Report::default());
    }

    #[test]
    fn the_context_grows_in_steps_with_the_prompt() {
        let of = |bytes: usize| context_tokens(&request(&"x".repeat(bytes), GenerateOptions::default()));
        assert_eq!((of(10), of(3000), of(30_000), of(10_000_000)), (4096, 4096, 16_384, CONTEXT_TOKENS_MAX));
    }

    #[test]
    fn records_become_events_and_a_cut_answer_an_error() {
        let mut decoder = OllamaDecoder::default();
        let mut events = VecDeque::new();
        let stream = concat!(
            r#"{"model":"m","message":{"role":"assistant","content":"He"},"done":false}"#,
            "\n",
            r#"{"response":"y","done":false}"#,
            "\n\n",
            r#"{"message":{"role":"assistant","content":"","thinking":"hm"},"done":false}"#,
            "\n",
        );
        decoder.push(stream.as_bytes(), &mut events).expect("decodes");
        assert_eq!(
            events.drain(..).collect::<Vec<_>>(),
            [GenerateEvent::Delta("He".into()), GenerateEvent::Delta("y".into())]
        );
        assert!(OllamaDecoder::default().finish(&mut events).is_err(), "no last record");
        decoder
            .push(br#"{"done":true,"done_reason":"length","prompt_eval_count":7,"eval_count":2}"#, &mut events)
            .expect("decodes");
        decoder.finish(&mut events).expect("complete");
        let usage = Usage { prompt_tokens: 7, completion_tokens: 2 };
        let finish_reason = FinishReason::Length;
        assert_eq!(events, [GenerateEvent::Usage(usage), GenerateEvent::Done { finish_reason }]);

        let mut failing = OllamaDecoder::default();
        assert_eq!(failing.push(b"{\"error\":\"out of memory\"}\n", &mut events), Err("out of memory".into()));
        assert!(OllamaDecoder::default().push(b"<html>\n", &mut events).is_err());
    }
}
