//! What `/api/generate` and `/api/chat` are asked: one body for both, because all but the prompt is the same.

use cluster_config::limits;
use serde::Deserialize;
use serde_json::Value;

use super::super::doors::{ClientKey, Conversation, OneOrMany, RagBody};
use crate::error::{Error, Result};
use crate::generate::{AnswerFormat, GenerateOptions, Message, Role};

/// The known fields; others are read over.
#[derive(Debug, Deserialize)]
pub(super) struct AnswerBody {
    model: String,
    /// Of `/api/chat`.
    #[serde(default)]
    messages: Vec<ChatMessage>,
    /// Of `/api/generate`.
    #[serde(default)]
    prompt: String,
    system: Option<String>,
    stream: Option<bool>,
    format: Option<Value>,
    options: Option<OptionsBody>,
    images: Option<Vec<Value>>,
    tools: Option<Vec<Value>>,
    rag: Option<RagBody>,
}

#[derive(Debug, Deserialize)]
struct ChatMessage {
    role: String,
    #[serde(default)]
    content: String,
    images: Option<Vec<Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OptionsBody {
    num_predict: Option<i64>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    num_gpu: Option<i32>,
}

impl AnswerBody {
    /// Records as they come, unless told otherwise.
    pub(super) fn is_stream(&self) -> bool {
        self.stream.unwrap_or(true)
    }

    /// The model's name.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// Nothing is asked: the client wants the model to be loaded.
    pub(super) fn is_load(&self) -> bool {
        self.messages.is_empty() && self.prompt.is_empty()
    }

    /// The conversation of `/api/chat`. Errors: a field by name.
    pub(super) fn into_chat(mut self, client: ClientKey) -> Result<Conversation> {
        let written = std::mem::take(&mut self.messages).into_iter().enumerate();
        let messages = written.map(|(number, message)| read_message(number, message)).collect::<Result<_>>()?;
        self.into_conversation(messages, "messages", client)
    }

    /// The prompt of `/api/generate`, with its system text before it: backends are asked through their chat endpoints. Errors: a field by name.
    pub(super) fn into_prompt(mut self, client: ClientKey) -> Result<Conversation> {
        let system = self.system.take().filter(|text| !text.is_empty());
        let system = system.map(|content| Message { role: Role::System, content });
        let asked = Message { role: Role::User, content: std::mem::take(&mut self.prompt) };
        self.into_conversation(system.into_iter().chain([asked]).collect(), "prompt", client)
    }

    fn into_conversation(
        self,
        messages: Vec<Message>,
        asked_in: &'static str,
        client: ClientKey,
    ) -> Result<Conversation> {
        for (field, values) in [("tools", self.tools), ("images", self.images)] {
            if values.is_some_and(|values| !values.is_empty()) {
                return Err(Error::field(field, "are not passed on", "leave them out"));
            }
        }
        let written = self.options.unwrap_or_default();
        let options = GenerateOptions {
            max_tokens: written.num_predict.map(read_num_predict).transpose()?,
            temperature: written.temperature,
            top_k: written.top_k,
            top_p: written.top_p,
            seed: written.seed,
            stop: written.stop.map(OneOrMany::into_vec).unwrap_or_default(),
            gpu_layers: written.num_gpu,
            format: self.format.map(read_format).transpose()?.flatten(),
        };
        Ok(Conversation { model: self.model, messages, asked_in, options, rag: self.rag, client })
    }
}

/// Negative: as much as there may be.
fn read_num_predict(written: i64) -> Result<u32> {
    if written < 0 {
        return Ok(limits::LLM_TOKENS_MAX);
    }
    u32::try_from(written).map_err(|_| {
        let hint = format!("use 1 to {}, or -1", limits::LLM_TOKENS_MAX);
        Error::field("options.num_predict", format!("{written} is out of range"), hint)
    })
}

fn read_message(number: usize, message: ChatMessage) -> Result<Message> {
    let key = |field: &str| format!("messages[{number}].{field}");
    if message.images.is_some_and(|images| !images.is_empty()) {
        return Err(Error::field(key("images"), "are not passed on", "leave them out"));
    }
    let role = match message.role.as_str() {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        other => {
            let hint = "use system, user or assistant";
            return Err(Error::field(key("role"), format!("{other:?} is not passed on"), hint));
        }
    };
    Ok(Message { role, content: message.content })
}

/// `""`, `"json"`, or a schema.
fn read_format(format: Value) -> Result<Option<AnswerFormat>> {
    match format {
        Value::Null => Ok(None),
        Value::String(word) if word.is_empty() => Ok(None),
        Value::String(word) if word == "json" => Ok(Some(AnswerFormat::Json)),
        schema @ Value::Object(_) => Ok(Some(AnswerFormat::Schema(schema))),
        _ => Err(Error::field("format", "neither \"json\" nor a schema", "use one of the two, or leave it out")),
    }
}
