//! A streamed answer from a scripted Ollama-compatible backend: the first token is at the client before the backend has sent its
//! last, and a client that leaves closes the backend's connection.

use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::llm::{End, Script, ScriptedLlm, Steps};
use chaos_tests::model::model_dir;
use chaos_tests::wait;
use futures::StreamExt;
use reqwest::Method;
use serde_json::json;

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

/// Asks a question whose answer streams. The status comes with the first token, because until then the coordinator may still turn to
/// another backend.
async fn ask(
    cluster: &Cluster,
    query: &str,
) -> anyhow::Result<impl futures::Stream<Item = reqwest::Result<impl AsRef<[u8]> + use<>>> + Unpin + use<>> {
    let question = json!({ "query": query, "collection": "docs", "stream": true });
    let call = reqwest::Client::new().post(format!("{}/api/v1/query", cluster.url())).json(&question);
    Ok(call.send().await?.error_for_status()?.bytes_stream())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_token_comes_before_the_last_is_sent_and_leaving_closes_the_backend() -> anyhow::Result<()> {
    let Some(model_dir) = model_dir() else { return Ok(()) };
    let steps = Steps::default();
    let tokens = ["first ", "last [1]"].map(str::to_owned).into();
    let backend = ScriptedLlm::start(Script { tokens, steps: Some(steps.clone()), ..Script::default() }).await?;
    let coordinator_extra = format!(
        "\n[[llm.backends]]\nname = \"scripted\"\nkind = \"ollama\"\nurl = \"{}\"\nmodel = \"small\"\n",
        backend.url()
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

    steps.allow(1);
    let (mut stream, mut text) = (ask(&cluster, "When does a primary term grow?").await?, String::new());
    read_until(&mut stream, &mut text, "first ").await?;
    ensure!(text.contains("event: sources") && !text.contains("event: done"), "{text}");
    ensure!(backend.exchanges()[0].sent.len() == 1, "the second token was not allowed yet");
    steps.allow(1);
    read_until(&mut stream, &mut text, "event: done").await?;
    ensure!(text.contains("event: citation"), "no citation: {text}");
    drop(stream);

    steps.allow(1);
    let (mut stream, mut text) = (ask(&cluster, "How do terms grow, once more?").await?, String::new());
    read_until(&mut stream, &mut text, "first ").await?;
    drop(stream);
    backend.until(|exchanges| matches!(exchanges[1].end, Some((_, End::ClientGone)))).await?;
    cluster.shut_down().await
}
