//! What both configurations share: reading TOML so that every error names its key, writing it, and the checks that recur.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::ConfigError;
use crate::ids::NodeId;
use crate::limits;
use crate::units::{self, ByteSize, WrittenDuration};

/// Reads TOML into the as-written struct. Errors name the dotted key, or the line where the text is no TOML at all.
/// `example` is the file that shows every key.
pub(crate) fn parse_toml<T: DeserializeOwned>(text: &str, example: &str) -> Result<T, ConfigError> {
    let see_example = || format!("{example} shows every key");
    let document = toml::Deserializer::parse(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        let line = 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
        ConfigError::new(format!("line {line}"), format!("not TOML: {}", error.message()), see_example())
    })?;
    serde_path_to_error::deserialize(document).map_err(|error| {
        let key = error.path().to_string();
        let message = error.inner().message();
        match message.strip_prefix("unknown field ").and_then(|rest| rest.split_once(", ")) {
            Some((_, expected)) => ConfigError::new(key, "unknown key", expected.replace('`', "")),
            None if message.starts_with("unknown field") => ConfigError::new(key, "unknown key", see_example()),
            None => ConfigError::new(key, message.to_owned(), see_example()),
        }
    })
}

/// A file that reads back as `written`. Sections and lists with nothing in them are left out: a person who appends to the file would name
/// them a second time, which TOML forbids.
pub(crate) fn write_toml<T: Serialize>(written: &T) -> Result<String, ConfigError> {
    let failed = |error: toml::ser::Error| ConfigError::new("(file)", error.to_string(), "report this as a bug");
    let mut table = toml::Table::try_from(written).map_err(failed)?;
    drop_empty(&mut table);
    toml::to_string(&table).map_err(failed)
}

fn drop_empty(table: &mut toml::Table) {
    table.retain(|_, value| match value {
        toml::Value::Table(section) => {
            drop_empty(section);
            !section.is_empty()
        }
        toml::Value::Array(list) => !list.is_empty(),
        _ => true,
    });
}

/// The value of a key without a default. An empty text counts as missing.
pub(crate) fn required(key: &str, value: Option<String>, hint: &str) -> Result<String, ConfigError> {
    value.filter(|text| !text.trim().is_empty()).ok_or_else(|| ConfigError::new(key, "missing", hint))
}

/// A path without a default.
pub(crate) fn required_path(key: &str, value: Option<PathBuf>, hint: &str) -> Result<PathBuf, ConfigError> {
    value.filter(|path| !path.as_os_str().is_empty()).ok_or_else(|| ConfigError::new(key, "missing", hint))
}

/// The name of the cluster: it is in every message, so it is kept short and plain.
pub(crate) fn cluster_id(value: Option<String>) -> Result<String, ConfigError> {
    let name = required("cluster_id", value, "give every process of the cluster the same name, for example \"dev\"")?;
    check_word("cluster_id", &name)?;
    Ok(name)
}

/// A word of an operator: 1 to 64 of letters, digits, `.`, `_` and `-`.
pub(crate) fn check_word(key: &str, word: &str) -> Result<(), ConfigError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if !word.is_empty() && word.len() <= limits::WORD_BYTES_MAX && word.chars().all(allowed) {
        return Ok(());
    }
    Err(ConfigError::new(
        key,
        format!("{word:?} is not a plain word"),
        format!("use 1 to {} of A-Z, a-z, 0-9, '.', '_' and '-'", limits::WORD_BYTES_MAX),
    ))
}

/// A number within its range.
pub(crate) fn in_range<N>(key: &str, value: N, min: N, max: N) -> Result<N, ConfigError>
where
    N: PartialOrd + std::fmt::Display,
{
    if value >= min && value <= max {
        return Ok(value);
    }
    Err(ConfigError::new(key, format!("{value} is out of range"), format!("use {min} to {max}")))
}

/// A size of at least `min`.
pub(crate) fn size_at_least(key: &str, value: ByteSize, min: ByteSize) -> Result<ByteSize, ConfigError> {
    if value >= min {
        return Ok(value);
    }
    Err(ConfigError::new(key, format!("{value} is too small"), format!("use at least {min}")))
}

/// A duration within its range.
pub(crate) fn duration_in(
    key: &str,
    value: WrittenDuration,
    min: Duration,
    max: Duration,
) -> Result<Duration, ConfigError> {
    if value.0 >= min && value.0 <= max {
        return Ok(value.0);
    }
    let (min, max) = (WrittenDuration(min), WrittenDuration(max));
    Err(ConfigError::new(key, format!("{value} is out of range"), format!("use {min} to {max}")))
}

/// An address that others dial.
pub(crate) fn dial_address(key: &str, text: &str) -> Result<String, ConfigError> {
    units::parse_dial_address(text)
        .map(|_| text.to_owned())
        .map_err(|error| ConfigError::new(key, error.to_string(), "give host:port as other processes reach it"))
}

/// An address to listen at.
pub(crate) fn listen_address(key: &str, text: &str) -> Result<SocketAddr, ConfigError> {
    units::parse_listen_address(text)
        .map_err(|error| ConfigError::new(key, error.to_string(), "give IP:PORT; names are not looked up here"))
}

/// `[dial_overrides]`: where this process dials a node instead of at its address, so that each directed link can be led
/// through a proxy.
pub(crate) fn dial_overrides(written: BTreeMap<String, String>) -> Result<BTreeMap<NodeId, String>, ConfigError> {
    let mut overrides = BTreeMap::new();
    for (node, address) in written {
        let key = format!("dial_overrides.{node}");
        let id: u64 =
            node.parse().ok().filter(|id| *id > 0).ok_or_else(|| {
                ConfigError::new(&key, "the key is not a node id", "write \"2\" = \"127.0.0.1:9999\"")
            })?;
        if overrides.insert(NodeId(id), dial_address(&key, &address)?).is_some() {
            return Err(ConfigError::new(key, "the node is named twice", "keep one line per node"));
        }
    }
    Ok(overrides)
}
