//! The stages of one document: parse, cut, embed. Each takes up what an earlier run of the same job has left.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::collection::{Collection, CollectionSpec, FieldType};
use cluster_config::limits;
use cluster_config::operation::Chunk;
use serde_json::{Map, Value};

use super::chunk::{self, TextChunk};
use super::parse::{self, Format, Parsed};
use super::{HEADINGS_FIELD, Ingest, PAGE_FIELD, Stop, blocking, encode, stages};
use crate::catalog::documents::StoredUpload;
use crate::catalog::jobs::{Claim, JobState};
use crate::embed::Purpose;
use crate::error::{Error, Result};

/// Chunks embedded in one call: a few micro-batches, so that progress moves and queries get their turn in between.
const EMBED_STEP_CHUNKS: usize = 64;
/// Time for embedding one step on a busy machine.
const EMBED_STEP_TIMEOUT: Duration = Duration::from_secs(120);

impl Ingest {
    /// Plain text here, everything else in a process of its own; what that made is kept.
    pub(super) async fn parse(&self, claim: &Claim) -> Result<Parsed> {
        let StoredUpload { media_type, file_name, content, .. } = &claim.upload;
        if Format::detect(content, media_type, file_name)?.is_plain() {
            let upload = claim.upload.clone();
            return blocking(move || Ok(parse::parse(&upload.content, &upload.media_type, &upload.file_name)?)).await;
        }
        if let Some(parsed) = stages::parsed(&self.catalog, claim).await? {
            return Ok(parsed);
        }
        let parsed = self.sandbox.parse(content, media_type, file_name).await?;
        stages::keep_parsed(&self.catalog, claim, &parsed).await?;
        Ok(parsed)
    }

    /// The text in pieces. `title` is the document's from here on.
    pub(super) async fn cut(&self, parsed: Parsed, title: String) -> Result<(Parsed, Vec<TextChunk>)> {
        let embedder = Arc::clone(&self.embedder);
        blocking(move || {
            let parsed = Parsed { title: Some(title).filter(|title| !title.is_empty()), ..parsed };
            let chunks = chunk::chunk(&parsed, embedder.tokens_max(), &|text| embedder.count_tokens(text))?;
            Ok((parsed, chunks))
        })
        .await
    }

    /// The pieces with their vectors. Those of a document of several steps are kept, step by step.
    pub(super) async fn embed(
        &self,
        claim: &Claim,
        collection: &Collection,
        parsed: &Parsed,
        chunks: Vec<TextChunk>,
    ) -> Result<Vec<Chunk>, Stop> {
        let spec = &collection.spec;
        let total = chunks.len();
        let mut embedded = Vec::with_capacity(total);
        for step in chunks.chunks(EMBED_STEP_CHUNKS) {
            let texts = step.iter().map(|chunk| chunk::embedding_text(parsed.title.as_deref(), chunk)).collect();
            let vectors = self.step_vectors(claim, spec, texts, total > EMBED_STEP_CHUNKS).await?;
            for (text_chunk, vector) in step.iter().zip(vectors) {
                let page = parsed.page_at(text_chunk.span.start);
                embedded.push(Chunk {
                    ordinal: embedded.len() as u32,
                    text: text_chunk.text.clone(),
                    metadata_json: chunk_metadata(spec, &claim.upload.metadata_json, page, &text_chunk.heading_path),
                    span: text_chunk.span.start as u64..text_chunk.span.end as u64,
                    vector,
                });
            }
            let progress = 0.2 + 0.7 * embedded.len() as f64 / total as f64;
            self.advance(claim, JobState::Embedding, progress, total as u32).await?;
        }
        Ok(embedded)
    }

    /// One step's vectors as stored, from an earlier run or from the model.
    async fn step_vectors(
        &self,
        claim: &Claim,
        spec: &CollectionSpec,
        texts: Vec<String>,
        is_kept: bool,
    ) -> Result<Vec<Vec<u8>>> {
        let part = stages::vectors_part(self.embedder.name(), &texts);
        let known = if is_kept { stages::vectors(&self.catalog, claim, part).await? } else { None };
        if let Some(vectors) = known.filter(|vectors| vectors.len() == texts.len()) {
            return Ok(vectors);
        }
        let vectors = self.embedder.embed(texts, Purpose::Ingest, Instant::now() + EMBED_STEP_TIMEOUT).await?;
        let stored = vectors.iter().map(|vector| encode::encode_stored(spec.metric, spec.dim as usize, vector));
        let stored = stored.collect::<Result<Vec<_>, _>>();
        let stored = stored.map_err(|error| Error::internal(format!("embedder {}: {error}", self.embedder.name())))?;
        if is_kept {
            stages::keep_vectors(&self.catalog, claim, part, &stored).await?;
        }
        Ok(stored)
    }
}

/// The caller's title, else the document's own, else the file's name.
pub(super) fn choose_title(claim: &Claim, parsed: &Parsed) -> String {
    let given = Some(claim.upload.title.clone()).filter(|title| !title.is_empty());
    let mut title = given.or_else(|| parsed.title.clone()).unwrap_or_else(|| claim.upload.file_name.clone());
    title.truncate(title.floor_char_boundary(limits::TITLE_BYTES_MAX));
    title
}

/// The document's metadata, with `page` and `headings` where the chunk has them: unless the caller has a field of that name, the collection
/// one that takes no such value, or the metadata would become too long.
fn chunk_metadata(spec: &CollectionSpec, metadata_json: &str, page: Option<u32>, headings: &[String]) -> String {
    let found = [
        (PAGE_FIELD, FieldType::Integer, page.map(Value::from)),
        (HEADINGS_FIELD, FieldType::Keyword, (!headings.is_empty()).then(|| headings.into())),
    ];
    let mut text = metadata_json.to_owned();
    let Ok(mut fields) = serde_json::from_str::<Map<String, Value>>(metadata_json) else { return text };
    for (name, kind, value) in found {
        let is_taken = fields.contains_key(name) || spec.fields.get(name).is_some_and(|declared| *declared != kind);
        let Some(value) = value.filter(|_| !is_taken) else { continue };
        fields.insert(name.to_owned(), value);
        let longer = serde_json::to_string(&fields).unwrap_or_default();
        if longer.is_empty() || longer.len() > limits::METADATA_BYTES_MAX {
            fields.remove(name);
        } else {
            text = longer;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_and_headings_go_where_they_take_nobodys_place() {
        let plain = CollectionSpec::new("c", 8);
        let declared = |name: &str, kind| CollectionSpec { fields: [(name.to_owned(), kind)].into(), ..plain.clone() };
        let headings = ["Limits".to_owned(), "Wind".to_owned()];
        let cases = [
            (&plain, "{\"a\":1}", Some(3), 0, "{\"a\":1,\"page\":3}"),
            (&plain, "{}", None, 0, "{}"),
            (&plain, "{\"page\":\"x\"}", Some(3), 0, "{\"page\":\"x\"}"),
            (&plain, "{}", None, 2, "{\"headings\":[\"Limits\",\"Wind\"]}"),
            (&plain, "{\"headings\":7}", Some(3), 1, "{\"headings\":7,\"page\":3}"),
            (&declared(PAGE_FIELD, FieldType::Integer), "{}", Some(3), 0, "{\"page\":3}"),
            (&declared(PAGE_FIELD, FieldType::Keyword), "{}", Some(3), 0, "{}"),
            (&declared(HEADINGS_FIELD, FieldType::Keyword), "{}", None, 1, "{\"headings\":[\"Limits\"]}"),
            (&declared(HEADINGS_FIELD, FieldType::Integer), "{}", None, 1, "{}"),
        ];
        for (spec, given, page, depth, expected) in cases {
            assert_eq!(chunk_metadata(spec, given, page, &headings[..depth]), expected, "{given}");
        }
        let nearly_full = format!("{{\"a\":\"{}\"}}", "x".repeat(limits::METADATA_BYTES_MAX - 20));
        let with_page = chunk_metadata(&plain, &nearly_full, Some(3), &headings);
        assert!(with_page.contains("page") && !with_page.contains("headings"));
        let full = format!("{{\"a\":\"{}\"}}", "x".repeat(limits::METADATA_BYTES_MAX - 8));
        assert_eq!(chunk_metadata(&plain, &full, Some(3), &headings), full);
    }
}
