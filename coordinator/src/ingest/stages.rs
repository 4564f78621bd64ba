//! What a job has done is kept stage by stage, so that after a crash it goes on where it was instead of beginning again.
//!
//! Kept are the parsed text and, step by step, the vectors. Cutting is not: it costs little and follows from the text. Vectors are
//! kept under the hash of what was embedded and by which model, so a newer version of this program that cuts otherwise, or another
//! model, never picks up vectors of other texts.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::parse::{self, Parsed};
use crate::catalog::jobs::Claim;
use crate::catalog::stages::Part;
use crate::catalog::{Catalog, CatalogError};

/// A parsed text as kept, with the version of the parsers that made it.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    parsed: Parsed,
}

/// The text of an earlier run of this job, if it was made by these parsers.
pub(super) async fn parsed(catalog: &Catalog, claim: &Claim) -> Result<Option<Parsed>, CatalogError> {
    let bytes = catalog.stage(claim, Part::Parsed).await?;
    let kept: Option<Kept> = bytes.and_then(|bytes| postcard::from_bytes(&bytes).ok());
    Ok(kept.filter(|kept| kept.version == parse::VERSION).map(|kept| kept.parsed))
}

/// Keeps the text.
pub(super) async fn keep_parsed(catalog: &Catalog, claim: &Claim, parsed: &Parsed) -> Result<(), CatalogError> {
    let kept = Kept { version: parse::VERSION, parsed: parsed.clone() };
    // Strings and numbers: postcard has no way to fail on them.
    let bytes = postcard::to_stdvec(&kept).map_err(|error| CatalogError::Failed(error.to_string()))?;
    catalog.keep_stage(claim, Part::Parsed, &bytes).await
}

/// Vectors of one step, as stored by the shards, if an earlier run embedded the very same texts.
pub(super) async fn vectors(
    catalog: &Catalog,
    claim: &Claim,
    part: Part,
) -> Result<Option<Vec<Vec<u8>>>, CatalogError> {
    Ok(catalog.stage(claim, part).await?.and_then(|bytes| postcard::from_bytes(&bytes).ok()))
}

/// Keeps the vectors of one step.
pub(super) async fn keep_vectors(
    catalog: &Catalog,
    claim: &Claim,
    part: Part,
    vectors: &[Vec<u8>],
) -> Result<(), CatalogError> {
    let bytes = postcard::to_stdvec(vectors).map_err(|error| CatalogError::Failed(error.to_string()))?;
    catalog.keep_stage(claim, part, &bytes).await
}

/// The name of one step's vectors.
pub(super) fn vectors_part(embedder: &str, texts: &[String]) -> Part {
    let mut hash = Xxh3::new();
    for text in std::iter::once(embedder).chain(texts.iter().map(String::as_str)) {
        hash.update(&(text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    Part::Vectors(hash.digest128())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_texts_or_another_model_have_another_name() {
        let part = |embedder: &str, texts: &[&str]| {
            vectors_part(embedder, &texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(part("m", &["ab", "c"]), part("m", &["ab", "c"]));
        assert_ne!(part("m", &["ab", "c"]), part("m", &["a", "bc"]));
        assert_ne!(part("m", &["ab"]), part("ma", &["b"]));
        assert_ne!(part("m", &["ab"]), part("n", &["ab"]));
    }
}
