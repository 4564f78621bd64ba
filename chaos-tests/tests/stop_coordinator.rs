//! SIGTERM to a coordinator that is held up from every side: by a language model that says no more, by an upload that takes for
//! ever, by connections that nobody uses. It ends within its bound, with exit code 0, and its log says what it cut.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::front::Front;
use chaos_tests::llm::{Script, ScriptedLlm, Steps};
use chaos_tests::wait;
use futures::StreamExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// As configured here.
const DRAIN: Duration = Duration::from_secs(2);
/// From the signal to the end on a busy machine; what the model and the upload would take by themselves is longer.
const ENDED_WITHIN: Duration = Duration::from_secs(20);

/// A stream that has shown its first token and waits for the second, which never comes.
async fn stalled_stream(front: &Front) -> anyhow::Result<impl Sized + use<>> {
    let body = json!({"model": "small", "stream": true, "messages": [{"role": "user", "content": "go on for ever"}]});
    let call =
        reqwest::Client::new().post(format!("http://127.0.0.1:{}/v1/chat/completions", front.port())).json(&body);
    let mut stream = call.send().await?.error_for_status()?.bytes_stream();
    let mut text = String::new();
    while !text.contains("first") {
        let piece = stream.next().await.context("the stream ended")??;
        text.push_str(&String::from_utf8_lossy(&piece));
    }
    Ok(stream)
}

/// An upload that comes in byte by byte, too slowly to be there within the minute, too fast to be given up.
async fn slow_upload(front: &Front) -> anyhow::Result<JoinHandle<()>> {
    let mut connection = TcpStream::connect(("127.0.0.1", front.port())).await?;
    let head = "POST /api/v1/documents HTTP/1.1\r\nhost: susui\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n";
    connection.write_all(head.as_bytes()).await?;
    Ok(tokio::spawn(async move {
        while connection.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }))
}

/// A connection that has had one answer and is kept alive.
async fn idle(front: &Front) -> anyhow::Result<TcpStream> {
    let mut connection = TcpStream::connect(("127.0.0.1", front.port())).await?;
    connection.write_all(b"GET /livez HTTP/1.1\r\nhost: susui\r\n\r\n").await?;
    let mut answer = [0; 1024];
    let read = connection.read(&mut answer).await?;
    ensure!(answer[..read].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..read]));
    Ok(connection)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_within_its_bound_and_says_what_it_cut() -> anyhow::Result<()> {
    let steps = Steps::default();
    steps.allow(1);
    let tokens = ["first ", "never"].map(str::to_owned).into();
    let model = ScriptedLlm::start(Script { tokens, steps: Some(steps), ..Script::default() }).await?;
    let coordinator_extra = format!(
        "\n[shutdown]\ndrain_timeout = \"{}s\"\n\n[llm]\ntoken_gap_timeout = \"2m\"\n\n[[llm.backends]]\nname = \"scripted\"\nkind = \"ollama\"\nurl = \"{}\"\nmodel = \"small\"\n",
        DRAIN.as_secs(),
        model.url()
    );
    let cluster =
        Cluster::start(Options { nodes: 1, fake_embedder: true, coordinator_extra, ..Options::default() }).await?;
    let mut front = Front::start(&cluster, "front").await?;
    let stream = stalled_stream(&front).await?;
    let upload = slow_upload(&front).await?;
    let (kept_alive, unused) = (idle(&front).await?, TcpStream::connect(("127.0.0.1", front.port())).await?);
    let client = front.client();
    wait::until("both requests to be under way", Duration::from_secs(30), || async {
        let metrics = client.text("/metrics").await?;
        // The stream's handler has returned; the upload, and the one that asks.
        ensure!(metrics.contains("\nhttp_requests_in_flight 2\n"), "{metrics}");
        Ok(())
    })
    .await?;

    let began = Instant::now();
    front.stop().await?;
    let took = began.elapsed();
    ensure!((DRAIN..ENDED_WITHIN).contains(&took), "it took {took:?}");
    let log = front.log()?;
    ensure!(log.contains("are cut") && log.contains("requests=2"), "{log}");
    ensure!(log.contains("stopped"), "{log}");
    drop((stream, kept_alive, unused));
    upload.await?;
    cluster.shut_down().await
}
