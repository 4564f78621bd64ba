//! Parses in a child process with bounds on time, memory and output, so that a hostile document ends a child and not the
//! coordinator. See `parse::child` for the other side.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use cluster_config::limits;
use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::parse::child::{DENIED_MEMORY, Order, Outcome, SUBCOMMAND};
use super::parse::{ParseError, Parsed};
use crate::error::{Error, Result};

/// The child's limit counts address space: what is freed has to leave it at once, and no thread may keep some for itself.
const ALLOCATOR_SETTINGS: &str = "retain:false,dirty_decay_ms:0,muzzy_decay_ms:0,background_thread:false,narenas:1";
/// Beyond this the child is taken to be stuck: its processor time is bounded, but not how long it waits for a processor.
const WALL_TIMES: u32 = 5;
/// Bytes of the child's own words that are kept.
const COMPLAINT_BYTES_MAX: u64 = 4096;
/// What an outcome takes beside its text: headings and offsets.
const OUTCOME_OVERHEAD_BYTES: usize = 32 * 1024 * 1024;

/// How documents are parsed.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The coordinator's binary.
    pub program: PathBuf,
    /// Address space of a child.
    pub memory_bytes: u64,
    /// Processor time of a child.
    pub time: Duration,
}

impl Sandbox {
    /// With this process' own binary, even where the file was replaced since it was started.
    pub fn new(memory_bytes: u64, time: Duration) -> Self {
        Self { program: "/proc/self/exe".into(), memory_bytes, time }
    }

    /// Parses in a child of its own.
    ///
    /// Errors: the document's (`ParseError`), or `Internal` where no child could be had. Cancel: the child is killed.
    pub async fn parse(&self, bytes: &[u8], media_type: &str, file_name: &str) -> Result<Parsed> {
        let order = Order {
            media_type: media_type.to_owned(),
            file_name: file_name.to_owned(),
            memory_bytes: self.memory_bytes,
            time: self.time,
        };
        let mut head = serde_json::to_vec(&order).map_err(|error| Error::internal(format!("parse order: {error}")))?;
        head.push(b'\n');
        let mut child = Command::new(&self.program)
            .arg(SUBCOMMAND)
            .env_clear()
            .env("MALLOC_CONF", ALLOCATOR_SETTINGS)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Error::internal(format!("no process to parse in: {error}")))?;
        match tokio::time::timeout(self.time * WALL_TIMES, converse(&mut child, &head, bytes)).await {
            Ok(Ok(heard)) => self.judge(heard),
            Ok(Err(error)) => Err(Error::internal(format!("talking to the parser: {error}"))),
            Err(_) => Err(self.too_slow().into()),
        }
    }

    fn judge(&self, heard: Heard) -> Result<Parsed> {
        if heard.status.success() {
            let outcome: Outcome = postcard::from_bytes(&heard.output)
                .map_err(|error| Error::internal(format!("what the parser answered: {error}")))?;
            return Ok(outcome?);
        }
        tracing::info!(status = %heard.status, complaint = heard.complaint, "a document ended its parser");
        let malformed = |reason: &str| ParseError::Malformed { format: "document".into(), reason: reason.to_owned() };
        let is = |signal: Signal| heard.status.signal() == Some(signal.as_raw());
        if is(Signal::XCPU) {
            Err(self.too_slow().into())
        } else if heard.complaint.contains(DENIED_MEMORY) {
            let most = format!("{} MiB of memory", self.memory_bytes >> 20);
            Err(ParseError::Expensive { most }.into())
        } else if heard.output.len() > output_bytes_max() {
            Err(ParseError::Unpacked { what: "bytes of text".into(), most: limits::DOCUMENT_BYTES_MAX }.into())
        } else if heard.status.signal().is_some() {
            Err(malformed("its reader broke down over it").into())
        } else {
            Err(Error::internal(format!("the parser ended with {}: {}", heard.status, heard.complaint)))
        }
    }

    fn too_slow(&self) -> ParseError {
        ParseError::Expensive { most: format!("{} s", self.time.as_secs()) }
    }
}

/// What came back from a child that has ended.
struct Heard {
    status: ExitStatus,
    output: Vec<u8>,
    complaint: String,
}

/// Writes and reads at the same time: a child that answers early must not wait for a parent that still writes.
async fn converse(child: &mut Child, head: &[u8], bytes: &[u8]) -> std::io::Result<Heard> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let gone = || std::io::Error::other("a pipe is missing");
    let (mut stdin, stdout, stderr) = (stdin.ok_or_else(gone)?, stdout.ok_or_else(gone)?, stderr.ok_or_else(gone)?);
    let write = async move {
        // A child that has died reads no further; how it died is what counts.
        if stdin.write_all(head).await.is_ok() {
            let _ = stdin.write_all(bytes).await;
        }
    };
    let ((), output, complaint) =
        tokio::join!(write, read(stdout, output_bytes_max() as u64 + 1), read(stderr, COMPLAINT_BYTES_MAX));
    let (output, complaint) = (output?, String::from_utf8_lossy(&complaint?).trim().to_owned());
    if output.len() > output_bytes_max() {
        child.start_kill()?;
    }
    Ok(Heard { status: child.wait().await?, output, complaint })
}

/// The first bytes of what comes; a pipe closed behind them ends a child that has more to say.
async fn read(pipe: impl AsyncRead + Unpin, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    pipe.take(bytes_max).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

fn output_bytes_max() -> usize {
    limits::DOCUMENT_BYTES_MAX + OUTCOME_OVERHEAD_BYTES
}
