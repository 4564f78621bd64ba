//! A streamed answer from a scripted Ollama-compatible backend: the first token is at the client before the backend has sent its
//! last, and a client that leaves closes the backend's connection.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::model::model_dir;
use chaos_tests::wait;
use futures::StreamExt;
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};

/// What the test tells the backend to do next.
enum Step {
    Token(&'static str),
    Finish,
}

/// What the backend saw.
#[derive(Debug, PartialEq)]
enum Seen {
    Generate,
    Closed,
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> anyhow::Result<String> {
    let (mut request_line, mut length) = (String::new(), 0);
    stream.read_line(&mut request_line).await?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(request_line)
}

async fn chunk(stream: &mut BufReader<TcpStream>, text: &str) -> anyhow::Result<()> {
    let framed = format!("{:x}\r\n{text}\r\n", text.len());
    stream.get_mut().write_all(framed.as_bytes()).await?;
    Ok(stream.get_mut().flush().await?)
}

/// Answers one generation as the steps say, everything else as an idle Ollama would.
async fn answer(
    mut stream: BufReader<TcpStream>,
    steps: Arc<Mutex<mpsc::Receiver<Step>>>,
    seen: mpsc::Sender<Seen>,
) -> anyhow::Result<()> {
    let request = read_request(&mut stream).await?;
    if !request.starts_with("POST") {
        let body = json!({ "version": "0.0.0", "models": [] }).to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        stream.get_mut().write_all(head.as_bytes()).await?;
        return Ok(stream.get_mut().write_all(body.as_bytes()).await?);
    }
    let mut steps = steps.lock().await;
    seen.send(Seen::Generate).await?;
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.get_mut().write_all(head.as_bytes()).await?;
    loop {
        let mut byte = [0; 1];
        tokio::select! {
            step = steps.recv() => match step {
                Some(Step::Token(token)) => {
                    let line = json!({ "response": token, "message": { "role": "assistant", "content": token }, "done": false });
                    chunk(&mut stream, &format!("{line}\n")).await?;
                }
                Some(Step::Finish) => {
                    let line = json!({ "response": "", "message": { "role": "assistant", "content": "" }, "done": true,
                        "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 2 });
                    chunk(&mut stream, &format!("{line}\n")).await?;
                    stream.get_mut().write_all(b"0\r\n\r\n").await?;
                    return Ok(());
                }
                None => return Ok(()),
            },
            read = stream.read(&mut byte) => {
                if matches!(read, Ok(0) | Err(_)) {
                    seen.send(Seen::Closed).await?;
                    return Ok(());
                }
            }
        }
    }
}

async fn backend() -> anyhow::Result<(u16, mpsc::Sender<Step>, mpsc::Receiver<Seen>)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    let (steps, next_step) = mpsc::channel(16);
    let (see, seen) = mpsc::channel(16);
    let next_step = Arc::new(Mutex::new(next_step));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(BufReader::new(stream), Arc::clone(&next_step), see.clone()));
        }
    });
    Ok((port, steps, seen))
}

/// Reads the stream until the text received contains `wanted`.
async fn read_until<S, B>(stream: &mut S, text: &mut String, wanted: &str) -> anyhow::Result<()>
where
    S: futures::Stream<Item = reqwest::Result<B>> + Unpin,
    B: AsRef<[u8]>,
{
    while !text.contains(wanted) {
        let next = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
        let piece = next.with_context(|| format!("no {wanted:?} in {text}"))?;
        let piece = piece.with_context(|| format!("the stream ended before {wanted:?}: {text}"))??;
        text.push_str(&String::from_utf8_lossy(piece.as_ref()));
    }
    Ok(())
}

/// Reads what the backend saw up to `wanted`.
async fn next_of(seen: &mut mpsc::Receiver<Seen>, wanted: Seen) -> anyhow::Result<()> {
    while seen.recv().await.context("the backend ended")? != wanted {}
    Ok(())
}

/// Asks a question; once the backend is asked, it sends its first token. The status comes with that token, because until then
/// the coordinator may still turn to another backend.
async fn ask(
    cluster: &Cluster,
    query: &str,
    seen: &mut mpsc::Receiver<Seen>,
    steps: &mpsc::Sender<Step>,
) -> anyhow::Result<impl futures::Stream<Item = reqwest::Result<impl AsRef<[u8]> + use<>>> + Unpin + use<>> {
    let question = json!({ "query": query, "collection": "docs", "stream": true });
    let call = reqwest::Client::new().post(format!("{}/api/v1/query", cluster.url())).json(&question).send();
    let call = tokio::spawn(call);
    tokio::time::timeout(Duration::from_secs(20), next_of(seen, Seen::Generate))
        .await
        .context("the backend is not asked")??;
    steps.send(Step::Token("first ")).await?;
    Ok(call.await??.error_for_status()?.bytes_stream())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_token_comes_before_the_last_is_sent_and_leaving_closes_the_backend() -> anyhow::Result<()> {
    let Some(model_dir) = model_dir() else { return Ok(()) };
    let (port, steps, mut seen) = backend().await?;
    let coordinator_extra = format!(
        "\n[[llm.backends]]\nname = \"scripted\"\nkind = \"ollama\"\nurl = \"http://127.0.0.1:{port}\"\nmodel = \"test\"\n"
    );
    let cluster =
        Cluster::start(Options { model_dir: Some(model_dir), coordinator_extra, ..Options::default() }).await?;
    let client = cluster.client();
    let spec = json!({ "dim": 384, "shards": 2, "copies": 2, "embedder": "all-MiniLM-L6-v2" });
    client.create_collection("docs", &spec).await?;
    let document = json!({ "id": "d", "title": "Terms", "text": "A primary term grows at each change of primary.", "collection": "docs" });
    let accepted = client.send(Method::POST, "/api/v1/documents", Some(&document)).await?.ok()?;
    let job = accepted["job_id"].as_str().context("no job_id")?.to_owned();
    wait::until("the document to be indexed", Duration::from_secs(60), || async {
        let state = client.send(Method::GET, &format!("/api/v1/jobs/{job}"), None).await?.ok()?;
        ensure!(state["status"] == "done", "{state}");
        Ok(())
    })
    .await?;

    let (mut stream, mut text) =
        (ask(&cluster, "When does a primary term grow?", &mut seen, &steps).await?, String::new());
    read_until(&mut stream, &mut text, "first ").await?;
    ensure!(text.contains("event: sources") && !text.contains("event: done"), "{text}");
    steps.send(Step::Token("last [1]")).await?;
    steps.send(Step::Finish).await?;
    read_until(&mut stream, &mut text, "event: done").await?;
    ensure!(text.contains("event: citation"), "no citation: {text}");
    drop(stream);

    let (mut stream, mut text) =
        (ask(&cluster, "How do terms grow, once more?", &mut seen, &steps).await?, String::new());
    read_until(&mut stream, &mut text, "first ").await?;
    drop(stream);
    let closed = tokio::time::timeout(Duration::from_secs(10), next_of(&mut seen, Seen::Closed)).await;
    closed.context("the backend's connection stayed open")??;
    cluster.shut_down().await
}
