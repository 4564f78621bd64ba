//! `[ingest]` of a coordinator: how many documents are worked on at once, and what parsing one may cost.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config_text as text;
use crate::error::ConfigError;
use crate::limits;
use crate::units::{ByteSize, WrittenDuration};

/// The ingest workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestConfig {
    /// Documents worked on at once.
    pub workers: usize,
    /// Address space of a process that parses one document.
    pub parse_memory: ByteSize,
    /// Processor time of a process that parses one document.
    pub parse_time: Duration,
    /// Of tenants' documents, where not 0: larger goes first.
    pub tenant_priority: BTreeMap<String, i32>,
}

/// `[ingest]` as written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "as IngestConfig")]
pub struct WrittenIngest {
    pub workers: Option<usize>,
    pub parse_memory: Option<ByteSize>,
    pub parse_time: Option<WrittenDuration>,
    pub tenant_priority: BTreeMap<String, i32>,
}

impl WrittenIngest {
    pub(crate) fn validate(self) -> Result<IngestConfig, ConfigError> {
        let workers = self.workers.unwrap_or(2);
        let parse_memory = self.parse_memory.unwrap_or(ByteSize::mib(1024));
        let parse_time = self.parse_time.unwrap_or(WrittenDuration(Duration::from_secs(60)));
        Ok(IngestConfig {
            workers: text::in_range("ingest.workers", workers, 1, limits::INGEST_WORKERS_MAX)?,
            // Below it not even the largest text fits, in and out.
            parse_memory: text::size_at_least("ingest.parse_memory", parse_memory, ByteSize::mib(256))?,
            parse_time: text::duration_in(
                "ingest.parse_time",
                parse_time,
                Duration::from_secs(1),
                limits::INTERVAL_MAX,
            )?,
            tenant_priority: self.tenant_priority,
        })
    }
}
