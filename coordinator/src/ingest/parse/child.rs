//! The child process that parses: `susui-coordinator parse`, started by `sandbox` and by nobody else.
//!
//! It binds itself before it reads a byte: memory, processor time, no files. Whatever a hostile document does to a parser (panic,
//! endless work, memory without end, a stack overflow) ends this process, and the parent says so in the document's name.

use std::io::{BufRead, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use cluster_config::limits;
use rustix::process::{Resource, Rlimit, nice, setrlimit};
use serde::{Deserialize, Serialize};

use super::{ParseError, Parsed};

/// First argument that makes the binary a parser.
pub const SUBCOMMAND: &str = "parse";
/// What the parent reads on standard error where memory was denied; it is Rust's own text.
pub(crate) const DENIED_MEMORY: &str = "memory allocation of";
/// Deep enough for any sane nesting; a deeper one ends the process.
const STACK_BYTES: usize = 64 * 1024 * 1024;
/// Standard streams, and some to spare.
const OPEN_FILES_MAX: u64 = 16;
/// Of what a panicking reader says.
const REASON_CHARS_MAX: usize = 200;
/// Behind queries and embedding, whoever waits for a processor.
const NICENESS: i32 = 5;

/// What the parent sends first, as one line of JSON; the document's bytes follow until the end of input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// As declared, or empty.
    pub media_type: String,
    /// As declared, or empty.
    pub file_name: String,
    /// Address space.
    pub memory_bytes: u64,
    /// Processor time.
    pub time: Duration,
}

/// What it answers, in postcard.
pub type Outcome = Result<Parsed, ParseError>;

/// One document from standard input to standard output. Exit code 1: the parent did not speak as agreed.
pub fn main() -> ExitCode {
    // Panics are an answer here; what is left on standard error is what ended the process.
    std::panic::set_hook(Box::new(|_| {}));
    match answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            // A document that cannot even be read is refused by the reader, not by the allocator.
            let told = if kind == Some(std::io::ErrorKind::OutOfMemory) { DENIED_MEMORY } else { "parse" };
            eprintln!("{told}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn answer() -> Result<(), Box<dyn std::error::Error>> {
    let mut input = std::io::stdin().lock();
    let order: Order = serde_json::from_str(&first_line(&mut input)?)?;
    bind(&order)?;
    // Its stack before the document: what does not fit is then the document.
    let (document, bytes) = std::sync::mpsc::sync_channel::<Vec<u8>>(1);
    let worker = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        let bytes = bytes.recv().unwrap_or_default();
        super::parse(&bytes, &order.media_type, &order.file_name)
    })?;
    let mut bytes = Vec::new();
    input.take(limits::DOCUMENT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    document.send(bytes)?;
    let outcome: Outcome = worker.join().unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
        let reason = said.unwrap_or("its reader gave up on it").chars().take(REASON_CHARS_MAX).collect();
        Err(ParseError::Malformed { format: "document".into(), reason })
    });
    std::io::stdout().lock().write_all(&postcard::to_stdvec(&outcome)?)?;
    Ok(())
}

fn first_line(input: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = Vec::new();
    for byte in input.bytes() {
        match byte? {
            b'\n' => break,
            byte => line.push(byte),
        }
    }
    String::from_utf8(line).map_err(std::io::Error::other)
}

fn bind(order: &Order) -> std::io::Result<()> {
    let limit =
        |resource, soft: u64, hard: u64| setrlimit(resource, Rlimit { current: Some(soft), maximum: Some(hard) });
    let seconds = order.time.as_secs().max(1);
    limit(Resource::As, order.memory_bytes, order.memory_bytes)?;
    // At the first the kernel says which limit it was (SIGXCPU), at the second it kills.
    limit(Resource::Cpu, seconds, seconds + 1)?;
    limit(Resource::Fsize, 0, 0)?;
    limit(Resource::Core, 0, 0)?;
    limit(Resource::Nofile, OPEN_FILES_MAX, OPEN_FILES_MAX)?;
    nice(NICENESS)?;
    Ok(())
}
