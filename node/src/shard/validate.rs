//! What a client write must satisfy before the primary logs it. Once logged, an operation that cannot be applied would stop every
//! copy, so everything that `apply` relies on is checked here, by rules that depend on the spec alone.

use cluster_config::collection::{CollectionSpec, Metric};
use cluster_config::error::ConfigError;
use cluster_config::ids::DocumentKey;
use cluster_config::limits;
use cluster_config::operation::{Chunk, Operation};
use half::f16;

use super::fields::declared_fields;

/// Deviation from unit length that half precision and the caller's arithmetic may leave.
const UNIT_LENGTH_TOLERANCE: f32 = 0.02;

/// Checks the operations of one write. Errors name the field, as `operations[0].chunks[2].vector`.
///
/// The shard's own operations (`Barrier`, `InstallGeneration`, `IndexUpTo`, `SetEffortCurve`) are accepted as well: the primary logs them through
/// the same door.
pub fn validate_operations(spec: &CollectionSpec, operations: &[Operation]) -> Result<(), ConfigError> {
    if operations.is_empty() || operations.len() > limits::OPS_PER_WRITE_MAX {
        return Err(ConfigError::new(
            "operations",
            format!("{} operations in one write", operations.len()),
            format!("send 1 to {}", limits::OPS_PER_WRITE_MAX),
        ));
    }
    for (position, operation) in operations.iter().enumerate() {
        validate_operation(spec, operation, &format!("operations[{position}]"))?;
    }
    Ok(())
}

pub(crate) fn validate_operation(spec: &CollectionSpec, operation: &Operation, path: &str) -> Result<(), ConfigError> {
    match operation {
        Operation::Barrier => Ok(()),
        Operation::DeleteDocument { key } => validate_key(key, path),
        Operation::PutDocument { key, title, chunks } => {
            validate_key(key, path)?;
            at_most(&format!("{path}.title"), title.len(), limits::TITLE_BYTES_MAX)?;
            if chunks.is_empty() || chunks.len() > limits::CHUNKS_PER_DOCUMENT_MAX {
                return Err(ConfigError::new(
                    format!("{path}.chunks"),
                    format!("{} chunks", chunks.len()),
                    format!("send 1 to {}", limits::CHUNKS_PER_DOCUMENT_MAX),
                ));
            }
            chunks.iter().enumerate().try_for_each(|(ordinal, chunk)| {
                validate_chunk(spec, chunk, ordinal, &format!("{path}.chunks[{ordinal}]"))
            })
        }
        Operation::InstallGeneration { generation, piece, piece_count, bytes } => {
            let pieces_max = (limits::GENERATION_BYTES_MAX / limits::GENERATION_PIECE_BYTES) as u32;
            if *generation == 0 || piece >= piece_count || *piece_count > pieces_max {
                return Err(ConfigError::new(
                    format!("{path}.piece"),
                    format!("piece {piece} of {piece_count} of generation {generation}"),
                    format!("send pieces of a generation from 1, at most {pieces_max}"),
                ));
            }
            at_most(&format!("{path}.bytes"), bytes.len(), limits::GENERATION_PIECE_BYTES)
        }
        Operation::IndexUpTo { generation, .. } if *generation == 0 => {
            Err(ConfigError::new(format!("{path}.generation"), "0 is not a generation", "send the installed one"))
        }
        Operation::IndexUpTo { .. } => Ok(()),
        Operation::SetEffortCurve { rungs, .. } if rungs.is_empty() || rungs.len() > limits::EFFORT_RUNGS_MAX => {
            Err(ConfigError::new(
                format!("{path}.rungs"),
                format!("{} measured efforts", rungs.len()),
                format!("send 1 to {}", limits::EFFORT_RUNGS_MAX),
            ))
        }
        Operation::SetEffortCurve { .. } => Ok(()),
    }
}

fn validate_key(key: &DocumentKey, path: &str) -> Result<(), ConfigError> {
    DocumentKey::with_tenant(key.tenant.as_str(), key.document_id.as_str())
        .map(drop)
        .map_err(|error| ConfigError::new(format!("{path}.key"), error.to_string(), "choose another id"))
}

fn validate_chunk(spec: &CollectionSpec, chunk: &Chunk, ordinal: usize, path: &str) -> Result<(), ConfigError> {
    if chunk.ordinal as usize != ordinal {
        return Err(ConfigError::new(
            format!("{path}.ordinal"),
            format!("{} stands at position {ordinal}", chunk.ordinal),
            "number the chunks of a document from 0",
        ));
    }
    at_most(&format!("{path}.text"), chunk.text.len(), limits::CHUNK_TEXT_BYTES_MAX)?;
    at_most(&format!("{path}.metadata"), chunk.metadata_json.len(), limits::METADATA_BYTES_MAX)?;
    if chunk.span.start > chunk.span.end {
        return Err(ConfigError::new(
            format!("{path}.span"),
            "ends before it begins",
            "send start and end, in this order",
        ));
    }
    declared_fields(spec, &chunk.metadata_json).map_err(|problem| {
        let key = problem.field.map_or_else(|| format!("{path}.metadata"), |field| format!("{path}.metadata.{field}"));
        ConfigError::new(key, problem.problem, "send what the collection's fields declare")
    })?;
    validate_vector(spec, &chunk.vector, &format!("{path}.vector"))
}

fn validate_vector(spec: &CollectionSpec, bytes: &[u8], path: &str) -> Result<(), ConfigError> {
    let expected = 2 * spec.dim as usize;
    if bytes.len() != expected {
        return Err(ConfigError::new(
            path,
            format!("{} bytes, expected {expected}", bytes.len()),
            format!("send half floats of dimension {}", spec.dim),
        ));
    }
    let mut squares = 0.0f32;
    for pair in bytes.chunks_exact(2) {
        let value = f16::from_le_bytes([pair[0], pair[1]]).to_f32();
        if !value.is_finite() {
            return Err(ConfigError::new(
                path,
                "has a value that is not finite",
                "send finite numbers within half precision",
            ));
        }
        squares += value * value;
    }
    let length = squares.sqrt();
    if spec.metric == Metric::Cosine && (length - 1.0).abs() > UNIT_LENGTH_TOLERANCE {
        return Err(ConfigError::new(path, format!("has length {length}, not 1"), "normalise the vector"));
    }
    Ok(())
}

fn at_most(path: &str, bytes: usize, bytes_max: usize) -> Result<(), ConfigError> {
    if bytes <= bytes_max {
        return Ok(());
    }
    Err(ConfigError::new(path, format!("{bytes} bytes"), format!("send at most {bytes_max}")))
}

#[cfg(test)]
mod tests {
    use cluster_config::collection::FieldType;

    use super::*;

    fn unit() -> Vec<u8> {
        [1.0f32, 0.0].iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()
    }

    fn put(change: impl FnOnce(&mut DocumentKey, &mut Vec<Chunk>)) -> Operation {
        let mut key = DocumentKey::new("d").expect("valid");
        let chunk = |ordinal| Chunk {
            ordinal,
            text: "x".into(),
            metadata_json: r#"{"year":1}"#.into(),
            span: 0..1,
            vector: unit(),
        };
        let mut chunks = vec![chunk(0), chunk(1)];
        change(&mut key, &mut chunks);
        Operation::PutDocument { key, title: String::new(), chunks }
    }

    #[test]
    fn refusals_name_the_field() {
        let mut spec = CollectionSpec::new("c", 2);
        spec.fields.insert("year".into(), FieldType::Integer);
        let good = put(|_, _| ());
        assert_eq!(validate_operations(&spec, &[good.clone(), Operation::Barrier]), Ok(()));
        let nan = f16::NAN.to_le_bytes();
        let cases = [
            ("operations[0].key", put(|key, _| key.document_id.clear())),
            ("operations[0].key", put(|key, _| key.tenant = "a\u{0}b".into())),
            ("operations[0].chunks", put(|_, chunks| chunks.clear())),
            ("operations[0].chunks[1].ordinal", put(|_, chunks| chunks[1].ordinal = 2)),
            ("operations[0].chunks[0].vector", put(|_, chunks| chunks[0].vector.truncate(3))),
            ("operations[0].chunks[0].vector", put(|_, chunks| chunks[0].vector[..2].copy_from_slice(&nan))),
            ("operations[0].chunks[0].vector", put(|_, chunks| chunks[0].vector.fill(0))),
            (
                "operations[0].chunks[1].metadata.year",
                put(|_, chunks| chunks[1].metadata_json = r#"{"year":"x"}"#.into()),
            ),
            ("operations[0].chunks[1].metadata", put(|_, chunks| chunks[1].metadata_json = "[]".into())),
            (
                "operations[0].chunks[0].text",
                put(|_, chunks| chunks[0].text = "x".repeat(limits::CHUNK_TEXT_BYTES_MAX + 1)),
            ),
            ("operations[0].generation", Operation::IndexUpTo { generation: 0, row_end: 1 }),
            (
                "operations[0].piece",
                Operation::InstallGeneration { generation: 1, piece: 1, piece_count: 1, bytes: vec![] },
            ),
        ];
        for (key, operation) in cases {
            let error = validate_operations(&spec, &[operation, good.clone()]).expect_err(key);
            assert_eq!(error.key, key);
        }
        assert_eq!(validate_operations(&spec, &[]).expect_err("empty").key, "operations");
        let many = vec![Operation::Barrier; limits::OPS_PER_WRITE_MAX + 1];
        assert_eq!(validate_operations(&spec, &many).expect_err("many").key, "operations");
    }
}
