//! `POST /v1/embeddings`: vectors of the coordinator's own embedder.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::auth::Caller;
use super::super::doors::{self, OneOrMany};
use super::super::error::ApiResult;
use super::super::json::{StrictJson, json as json_response};
use crate::error::{Error, Result};
use crate::services::Services;

/// The request's known fields; others are read over.
#[derive(Debug, Deserialize)]
pub(super) struct EmbeddingsBody {
    model: String,
    input: Input,
    encoding_format: Option<String>,
    dimensions: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Input {
    Texts(OneOrMany),
    /// Tokens of some tokenizer, which need not be ours.
    Other(#[expect(dead_code, reason = "only told apart")] Value),
}

/// How vectors are written.
#[derive(Clone, Copy)]
enum Encoding {
    /// JSON numbers.
    Float,
    /// Little-endian f32, base64: what the Python client asks for.
    Base64,
}

/// Embeds texts.
pub(super) async fn post_embeddings(
    State(services): State<Arc<Services>>,
    caller: Caller,
    StrictJson(body): StrictJson<EmbeddingsBody>,
) -> ApiResult<Response> {
    let encoding = read_encoding(body.encoding_format.as_deref())?;
    let texts = match body.input {
        Input::Texts(texts) => texts.into_vec(),
        Input::Other(_) => return Err(Error::field("input", "not a text", "send a text or a list of texts").into()),
    };
    let (vectors, tokens) = doors::embed(&services, &caller, &body.model, texts, body.dimensions).await?;
    let data: Vec<Value> = vectors
        .iter()
        .enumerate()
        .map(|(index, vector)| json!({"object": "embedding", "index": index, "embedding": encode(vector, encoding)}))
        .collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    let reply = json!({"object": "list", "data": data, "model": body.model, "usage": usage});
    Ok(json_response(StatusCode::OK, &reply))
}

fn read_encoding(name: Option<&str>) -> Result<Encoding> {
    match name {
        None | Some("float") => Ok(Encoding::Float),
        Some("base64") => Ok(Encoding::Base64),
        Some(other) => Err(Error::field("encoding_format", format!("unknown format {other:?}"), "use float or base64")),
    }
}

fn encode(vector: &[f32], encoding: Encoding) -> Value {
    match encoding {
        Encoding::Float => json!(vector),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|component| component.to_le_bytes()).collect();
            STANDARD.encode(bytes).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_little_endian_f32() {
        // 1.0 is 00 00 80 3f, -2.0 is 00 00 00 c0.
        assert_eq!(encode(&[1.0, -2.0], Encoding::Base64), "AACAPwAAAMA=");
        assert_eq!(encode(&[0.5], Encoding::Float), json!([0.5]));
    }
}
