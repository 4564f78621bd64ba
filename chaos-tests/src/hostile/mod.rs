//! Requests that mean no good: a corpus made from a seed, the same in every run.
//!
//! Each is bytes on a connection, because much of what is hostile no HTTP client would send.

pub mod documents;
pub mod forms;
pub mod packages;
pub mod pdfs;
pub mod requests;

use std::time::Duration;

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest wait for an answer: the coordinator gives up a stalled body well before.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Most bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// One hostile request.
#[derive(Clone, Debug)]
pub struct Hostile {
    /// What it is, for reports.
    pub name: String,
    /// Everything that is sent.
    pub bytes: Vec<u8>,
    /// Stays silent after it instead of waiting for an answer with nothing more to say; the answer still has to come.
    pub is_stalled: bool,
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    /// `None`: the connection was closed without an answer.
    pub status: Option<u16>,
    /// The job of an upload that was taken.
    pub job_id: Option<String>,
    /// The body, for reports.
    pub text: String,
}

/// The whole corpus for a collection.
pub fn corpus(collection: &str) -> Vec<Hostile> {
    let mut all = forms::corpus(collection);
    all.extend(documents::corpus(collection));
    all.extend(pdfs::corpus(collection));
    all.extend(packages::corpus(collection));
    all.extend(requests::corpus(collection));
    all
}

/// A good file cut short, and with ever more bytes flipped behind its first `mark_bytes`, by which its format is told.
fn damaged(good: &[u8], mark_bytes: usize, seed: u64) -> Vec<(String, Vec<u8>)> {
    let mut random = StdRng::seed_from_u64(seed);
    let cut = (1..12).map(|part| (format!("cut {part}"), good[..good.len() * part / 12].to_vec()));
    let flipped = (0..20).map(|number| {
        let mut flipped = good.to_vec();
        for _ in 0..=number {
            let position = random.random_range(mark_bytes..flipped.len());
            flipped[position] = random.random();
        }
        (format!("flipped {number}"), flipped)
    });
    cut.chain(flipped).collect()
}

impl Hostile {
    /// A request as it stands.
    pub fn raw(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), bytes: bytes.into(), is_stalled: false }
    }

    /// A well-formed request around a body.
    pub fn post(name: impl Into<String>, path: &str, content_type: &str, body: &[u8]) -> Self {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: susui\r\nconnection: close\r\ncontent-type: {content_type}\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        Self::raw(name, [head.as_bytes(), body].concat())
    }

    /// A well-formed form with one file.
    pub fn file(name: &str, collection: &str, file_name: &str, bytes: &[u8]) -> Self {
        let id: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let body = [
            part("form-data; name=\"collection\"", collection.as_bytes()),
            part("form-data; name=\"id\"", id.as_bytes()),
            part(&format!("form-data; name=\"file\"; filename=\"{file_name}\""), bytes),
            b"--edge--\r\n".to_vec(),
        ];
        Self::post(name, "/api/v1/documents", "multipart/form-data; boundary=edge", &body.concat())
    }

    /// Sends it and reads the answer. Errors: none came in time.
    pub async fn send(&self, address: &str) -> anyhow::Result<Reply> {
        let mut stream = TcpStream::connect(address).await?;
        // A server that has refused reads no further: what cannot be sent any more is not needed for the answer.
        let _ = stream.write_all(&self.bytes).await;
        if !self.is_stalled {
            let _ = stream.flush().await;
        }
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, read(&mut stream)).await;
        let answer = answer.with_context(|| format!("{}: no answer within {ANSWER_TIMEOUT:?}", self.name))?;
        parse(&answer).with_context(|| self.name.clone())
    }
}

/// One part of a form with the boundary `edge`.
pub(crate) fn part(disposition: &str, body: &[u8]) -> Vec<u8> {
    [b"--edge\r\ncontent-disposition: ", disposition.as_bytes(), b"\r\n\r\n", body, b"\r\n"].concat()
}

/// The first answer: its head, and its body as far as it says how long it is.
async fn read(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut piece = vec![0; 16 * 1024];
    while answer.len() < ANSWER_BYTES_MAX && !is_whole(&answer) {
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => break,
            Ok(count) => answer.extend_from_slice(&piece[..count]),
        }
    }
    answer
}

fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let length = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length")).map(|(_, value)| value.trim());
    length.filter_map(|value| value.parse::<usize>().ok()).any(|length| body.len() >= length)
}

fn parse(answer: &[u8]) -> anyhow::Result<Reply> {
    if answer.is_empty() {
        return Ok(Reply { status: None, job_id: None, text: String::new() });
    }
    let text = String::from_utf8_lossy(answer).into_owned();
    ensure!(text.starts_with("HTTP/1.1 "), "not an answer: {text:?}");
    let status = text.get(9..12).and_then(|digits| digits.parse().ok()).context("no status")?;
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
    let value: Value = serde_json::from_str(&body).unwrap_or_default();
    Ok(Reply { status: Some(status), job_id: value["job_id"].as_str().map(str::to_owned), text: body })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn the_corpus_is_large_and_every_name_stands_for_one_request() {
        let corpus = super::corpus("c");
        let names: BTreeSet<&str> = corpus.iter().map(|hostile| hostile.name.as_str()).collect();
        assert!(corpus.len() >= 200, "{}", corpus.len());
        assert_eq!(names.len(), corpus.len());
        let again = super::corpus("c");
        assert!(corpus.iter().zip(&again).all(|(left, right)| left.bytes == right.bytes), "made from a seed");
    }
}
