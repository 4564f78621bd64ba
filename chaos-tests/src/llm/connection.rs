//! One connection: requests one after the other, as long as the client keeps it open.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::bodies::{Protocol, about, first_source};
use super::{End, Ending, Script, Shared};

/// Most bytes of a request's body.
const BODY_BYTES_MAX: usize = 4 << 20;

struct Request {
    path: String,
    body: Value,
}

/// Serves until the client closes, or the script does.
pub(super) async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    // Otherwise small records wait for the other side's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::new(stream);
    while let Ok(Some(request)) = read_request(&mut stream).await {
        let is_open = match Protocol::of(&request.path) {
            Some(protocol) => generate(&mut stream, &shared, protocol, request).await,
            None => tell(&mut stream, &shared, &request.path).await,
        };
        if !matches!(is_open, Ok(true)) {
            return;
        }
    }
}

/// The next request; `None` where the client has closed.
async fn read_request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length.min(BODY_BYTES_MAX)];
    stream.read_exact(&mut body).await?;
    Ok(Some(Request { path, body: serde_json::from_slice(&body).unwrap_or_default() }))
}

async fn write(stream: &mut BufReader<TcpStream>, bytes: &[u8]) -> io::Result<()> {
    stream.get_mut().write_all(bytes).await
}

/// One chunk of a chunked body.
async fn chunk(stream: &mut BufReader<TcpStream>, bytes: &[u8]) -> io::Result<()> {
    let mut framed = format!("{:x}\r\n", bytes.len()).into_bytes();
    framed.extend_from_slice(bytes);
    framed.extend_from_slice(b"\r\n");
    write(stream, &framed).await
}

async fn whole(stream: &mut BufReader<TcpStream>, head: &str, body: &str) -> io::Result<bool> {
    write(stream, format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
    Ok(true)
}

async fn tell(stream: &mut BufReader<TcpStream>, shared: &Shared, path: &str) -> io::Result<bool> {
    let script = shared.script.borrow().clone();
    let running = shared.exchanges.borrow().iter().filter(|exchange| exchange.end.is_none()).count();
    match about(path, &script, running) {
        Some((media_type, body)) => whole(stream, &format!("200 OK\r\ncontent-type: {media_type}"), &body).await,
        None => whole(stream, "404 Not Found\r\ncontent-type: application/json", r#"{"error":"not found"}"#).await,
    }
}

/// Plays the script. True: the connection may be used again.
async fn generate(
    stream: &mut BufReader<TcpStream>,
    shared: &Shared,
    protocol: Protocol,
    request: Request,
) -> io::Result<bool> {
    let mut script = shared.script.borrow().clone();
    if script.quotes {
        script.tokens = vec![first_source(&request.body).unwrap_or_else(|| "There is no source.".to_owned())];
    }
    let model = request.body["model"].as_str().unwrap_or_default().to_owned();
    let read = request.body["messages"].as_array().map_or(1, Vec::len);
    let (number, running) = shared.begin(&request.path, request.body);
    if running > script.at_once_max {
        shared.end(number, End::Refused);
        let head = "503 Service Unavailable\r\nretry-after: 1\r\ncontent-type: application/json";
        return whole(stream, head, r#"{"error":"server busy, please try again"}"#).await;
    }
    let end = play(stream, shared, protocol, &script, number, (model.as_str(), read)).await;
    // An error of the socket is the client's going away, too.
    let end = end.unwrap_or(End::ClientGone);
    shared.end(number, end);
    Ok(end == End::Complete)
}

async fn play(
    stream: &mut BufReader<TcpStream>,
    shared: &Shared,
    protocol: Protocol,
    script: &Script,
    number: usize,
    (model, read): (&str, usize),
) -> io::Result<End> {
    let count = script.ending.tokens(script.tokens.len());
    for (position, token) in script.tokens.iter().take(count).enumerate() {
        let pause = if position == 0 { script.first_token } else { script.token_gap };
        if !is_there_after(stream, pause, script).await {
            return Ok(End::ClientGone);
        }
        if position == 0 {
            begin(stream, protocol).await?;
        }
        chunk(stream, protocol.token(model, token).as_bytes()).await?;
        shared.note_token(number);
    }
    if count == 0 && !matches!(script.ending, Ending::Stall { .. }) {
        begin(stream, protocol).await?;
    }
    match script.ending {
        Ending::Complete => {
            chunk(stream, protocol.end(model, read, count).as_bytes()).await?;
            write(stream, b"0\r\n\r\n").await?;
            return Ok(End::Complete);
        }
        Ending::Stall { .. } => {
            // Only the client ends it.
            let _ = stream.fill_buf().await;
            return Ok(End::ClientGone);
        }
        Ending::Error { .. } => {
            chunk(stream, protocol.error().as_bytes()).await?;
            write(stream, b"0\r\n\r\n").await?;
        }
        Ending::TruncatedText { .. } => {
            chunk(stream, &protocol.truncated(model)).await?;
            write(stream, b"0\r\n\r\n").await?;
        }
        Ending::Cut { .. } => {}
    }
    Ok(End::Broken)
}

async fn begin(stream: &mut BufReader<TcpStream>, protocol: Protocol) -> io::Result<()> {
    let media_type = protocol.media_type();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\ntransfer-encoding: chunked\r\n\r\n");
    write(stream, head.as_bytes()).await
}

/// Waits for the next token's time and step. False: the client went away meanwhile.
async fn is_there_after(stream: &mut BufReader<TcpStream>, pause: Duration, script: &Script) -> bool {
    let due = async {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        if let Some(steps) = &script.steps {
            steps.take().await;
        }
    };
    tokio::select! {
        () = due => true,
        // A client that waits for its answer sends nothing: whatever comes is its end.
        _ = stream.fill_buf() => false,
    }
}
