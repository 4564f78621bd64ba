//! The protocols' records, as real servers write them.

use serde_json::{Value, json};

use super::Script;

/// Which protocol a generation speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// `/api/chat`.
    OllamaChat,
    /// `/api/generate`.
    OllamaGenerate,
    /// `/v1/chat/completions`.
    OpenAi,
}

impl Protocol {
    pub(super) fn of(path: &str) -> Option<Self> {
        match path {
            "/api/chat" => Some(Self::OllamaChat),
            "/api/generate" => Some(Self::OllamaGenerate),
            "/v1/chat/completions" => Some(Self::OpenAi),
            _ => None,
        }
    }

    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::OllamaChat | Self::OllamaGenerate => "application/x-ndjson",
            Self::OpenAi => "text/event-stream",
        }
    }

    /// One token's record with its framing.
    pub(super) fn token(self, model: &str, token: &str) -> String {
        let at = "2026-01-01T00:00:00Z";
        match self {
            Self::OllamaChat => {
                let message = json!({"role": "assistant", "content": token});
                line(&json!({"model": model, "created_at": at, "message": message, "done": false}))
            }
            Self::OllamaGenerate => line(&json!({"model": model, "created_at": at, "response": token, "done": false})),
            Self::OpenAi => event(&chunk(model, json!({"content": token}), Value::Null)),
        }
    }

    /// The end of a whole answer, with the tokens that were read and written.
    pub(super) fn end(self, model: &str, read: usize, written: usize) -> String {
        match self {
            Self::OllamaChat | Self::OllamaGenerate => line(&json!({
                "model": model, "created_at": "2026-01-01T00:00:01Z", "message": {"role": "assistant", "content": ""},
                "response": "", "done": true, "done_reason": "stop", "total_duration": 5, "load_duration": 1,
                "prompt_eval_count": read, "prompt_eval_duration": 1, "eval_count": written, "eval_duration": 3,
            })),
            Self::OpenAi => {
                let usage =
                    json!({"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written});
                let mut last = chunk(model, json!({}), Value::Null);
                last["choices"] = json!([]);
                last["usage"] = usage;
                let stop = event(&chunk(model, json!({}), json!("stop")));
                format!("{stop}{}data: [DONE]\n\n", event(&last))
            }
        }
    }

    /// An error within an answer.
    pub(super) fn error(self) -> String {
        match self {
            Self::OllamaChat | Self::OllamaGenerate => line(&json!({"error": "scripted failure"})),
            Self::OpenAi => event(&json!({"error": {"message": "scripted failure", "type": "server_error"}})),
        }
    }

    /// A record that breaks off within a character of two bytes.
    pub(super) fn truncated(self, model: &str) -> Vec<u8> {
        let whole = self.token(model, "né").into_bytes();
        let place = whole.iter().position(|byte| *byte == 0xc3).unwrap_or(whole.len());
        whole[..=place.min(whole.len() - 1)].to_vec()
    }
}

fn chunk(model: &str, delta: Value, finish_reason: Value) -> Value {
    let choice = json!({"index": 0, "delta": delta, "finish_reason": finish_reason});
    json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]})
}

fn line(record: &Value) -> String {
    format!("{record}\n")
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

/// The text of the first source in a conversation, as the coordinator encloses it.
pub(super) fn first_source(body: &Value) -> Option<String> {
    let contents = body["messages"].as_array()?.iter().filter_map(|message| message["content"].as_str());
    let (_, rest) = contents.filter_map(|content| content.split_once("<source ")).next()?;
    let (text, _) = rest.split_once(">\n")?.1.split_once("\n</source>")?;
    Some(text.to_owned())
}

/// The answer to a question about the server itself: media type and body. `None`: no such path.
pub(super) fn about(path: &str, script: &Script, running: usize) -> Option<(&'static str, String)> {
    let json = |value: Value| Some(("application/json", value.to_string()));
    match path {
        "/api/version" => json(json!({"version": "0.9.0"})),
        "/api/tags" => json(json!({"models": []})),
        "/api/ps" => {
            let size = 1_000_000_u64;
            let models = script.on_gpu.map(|share| {
                json!({"name": "small", "model": "small", "size": size, "size_vram": (size as f32 * share) as u64})
            });
            json(json!({"models": models.into_iter().collect::<Vec<_>>()}))
        }
        "/v1/models" => json(json!({"object": "list", "data": []})),
        "/metrics" => {
            let text = format!(
                "vllm:num_requests_running{{model_name=\"small\"}} {running}\nvllm:num_requests_waiting{{model_name=\"small\"}} 0\n\
                 vllm:kv_cache_usage_perc{{model_name=\"small\"}} {}\n",
                script.kv_used
            );
            Some(("text/plain; version=0.0.4", text))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_source_is_what_stands_between_its_marks() {
        let said = |content: &str| json!({"messages": [{"role": "system", "content": content}, {"content": "why?"}]});
        let two = "Answer.\n\n<source number=\"1\" title=\"t > u\">\nk7 v12\n</source>\n\n<source number=\"2\" title=\"\">\nx\n</source>";
        assert_eq!(first_source(&said(two)).as_deref(), Some("k7 v12"));
        assert_eq!(first_source(&said("There are no sources.")), None);
        assert_eq!(first_source(&json!({"prompt": "why?"})), None);
    }
}
