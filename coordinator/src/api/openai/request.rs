//! What the chat and the text endpoint are asked: one body for both, because all but the prompt is the same.

use serde::Deserialize;
use serde_json::Value;

use super::super::doors::{ClientKey, Conversation, OneOrMany, RagBody};
use crate::error::{Error, Result};
use crate::generate::{AnswerFormat, GenerateOptions, Message, Role};

/// The known fields; others are read over.
#[derive(Debug, Deserialize)]
pub(super) struct AnswerBody {
    model: String,
    /// Of the chat endpoint.
    messages: Option<Vec<ChatMessage>>,
    /// Of the text endpoint: a text, or a list of one.
    prompt: Option<Value>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    /// Not the protocol's; vLLM's clients send it.
    top_k: Option<u32>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    n: Option<u32>,
    response_format: Option<ResponseFormat>,
    tools: Option<Vec<Value>>,
    user: Option<String>,
    rag: Option<RagBody>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct ChatMessage {
    role: String,
    content: Option<Content>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<JsonSchema>,
}

#[derive(Debug, Deserialize)]
struct JsonSchema {
    schema: Option<Value>,
}

impl AnswerBody {
    /// `None`: in one body. Else as a stream, with a chunk about the usage if true.
    pub(super) fn stream(&self) -> Option<bool> {
        let with_usage = self.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false);
        self.stream.unwrap_or(false).then_some(with_usage)
    }

    /// The chat endpoint's conversation. Errors: a field by name.
    pub(super) fn into_chat(mut self, client: ClientKey) -> Result<Conversation> {
        let written =
            self.messages.take().ok_or_else(|| Error::field("messages", "missing", "send the conversation"))?;
        let messages = written.into_iter().enumerate();
        let messages = messages.map(|(number, message)| read_message(number, message)).collect::<Result<_>>()?;
        self.into_conversation(messages, "messages", client)
    }

    /// The text endpoint's prompt, as one message of the user's: backends are asked through their chat endpoints. Errors: a field by name.
    pub(super) fn into_text(mut self, client: ClientKey) -> Result<Conversation> {
        let content = read_prompt(self.prompt.take().unwrap_or_default())?;
        self.into_conversation(vec![Message { role: Role::User, content }], "prompt", client)
    }

    fn into_conversation(
        self,
        messages: Vec<Message>,
        asked_in: &'static str,
        client: ClientKey,
    ) -> Result<Conversation> {
        if self.tools.is_some_and(|tools| !tools.is_empty()) {
            return Err(Error::field("tools", "are not passed on", "leave them out"));
        }
        if self.n.is_some_and(|n| n != 1) {
            return Err(Error::field("n", "only one answer is given", "use 1, or ask several times"));
        }
        let options = GenerateOptions {
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed,
            stop: self.stop.map(OneOrMany::into_vec).unwrap_or_default(),
            format: self.response_format.map(read_format).transpose()?.flatten(),
            ..GenerateOptions::default()
        };
        let client = client.or_named(self.user.as_deref());
        Ok(Conversation { model: self.model, messages, asked_in, options, rag: self.rag, client })
    }
}

fn read_message(number: usize, message: ChatMessage) -> Result<Message> {
    let role = match message.role.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        other => {
            let key = format!("messages[{number}].role");
            return Err(Error::field(key, format!("{other:?} is not passed on"), "use system, user or assistant"));
        }
    };
    let content = match message.content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let mut texts = Vec::with_capacity(parts.len());
            for (position, part) in parts.into_iter().enumerate() {
                let key = || format!("messages[{number}].content[{position}]");
                match (part.kind.as_str(), part.text) {
                    ("text", Some(text)) => texts.push(text),
                    (kind, _) => {
                        return Err(Error::field(
                            key(),
                            format!("{kind:?} is not passed on"),
                            "send parts of type text",
                        ));
                    }
                }
            }
            texts.join("\n")
        }
    };
    Ok(Message { role, content })
}

fn read_format(format: ResponseFormat) -> Result<Option<AnswerFormat>> {
    match (format.kind.as_str(), format.json_schema.and_then(|json_schema| json_schema.schema)) {
        ("text", _) => Ok(None),
        ("json_object", _) => Ok(Some(AnswerFormat::Json)),
        ("json_schema", Some(schema)) => Ok(Some(AnswerFormat::Schema(schema))),
        ("json_schema", None) => {
            Err(Error::field("response_format.json_schema.schema", "missing", "give the schema of the answer"))
        }
        (other, _) => {
            let hint = "use text, json_object or json_schema";
            Err(Error::field("response_format.type", format!("unknown type {other:?}"), hint))
        }
    }
}

fn read_prompt(prompt: Value) -> Result<String> {
    let refuse = |problem: &str| Error::field("prompt", problem, "send one text; tokens are not understood");
    match prompt {
        Value::String(text) => Ok(text),
        Value::Array(mut texts) if texts.len() == 1 => match texts.remove(0) {
            Value::String(text) => Ok(text),
            _ => Err(refuse("not a text")),
        },
        Value::Array(texts) => Err(refuse(&format!("{} prompts", texts.len()))),
        _ => Err(refuse("not a text")),
    }
}
