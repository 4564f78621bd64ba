//! The pool against scripted servers on loopback sockets: what the wire carries in both protocols, that tokens are not held
//! back, and that dropping an answer closes the server's connection.

use std::time::{Duration, Instant};

use cluster_config::llm_config::{LlmBackendConfig, LlmConfig, LlmKind, LlmRouting};
use coordinator::generate::metrics::PoolMetrics;
use coordinator::generate::pool::Pool;
use coordinator::generate::{FinishReason, GenerateError, GenerateEvent, GenerateRequest, Message, Role, Usage};
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A server that takes one connection at a time and does what the test tells it.
struct Server {
    listener: TcpListener,
    url: String,
}

/// A request that has been read, with its connection.
struct Exchange {
    connection: TcpStream,
    head: String,
    body: serde_json::Value,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        Self { listener, url }
    }

    async fn accept(&self) -> Exchange {
        let (mut connection, _) = self.listener.accept().await.expect("accepts");
        let mut bytes = Vec::new();
        loop {
            assert!(connection.read_buf(&mut bytes).await.expect("reads") > 0, "closed within the request");
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().expect("a number"))
            });
            if body.len() == length.unwrap_or(0) {
                let body = serde_json::from_str(body).unwrap_or_default();
                return Exchange { connection, head: head.to_owned(), body };
            }
        }
    }
}

impl Exchange {
    async fn begin(&mut self, media_type: &str) {
        self.raw(&format!("HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\ntransfer-encoding: chunked\r\n\r\n")).await;
    }

    /// One HTTP chunk, flushed.
    async fn write(&mut self, text: &str) {
        self.raw(&format!("{:x}\r\n{text}\r\n", text.len())).await;
    }

    async fn end(&mut self) {
        self.raw("0\r\n\r\n").await;
    }

    async fn answer(&mut self, status: &str, headers: &str, body: &str) {
        self.raw(&format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())).await;
    }

    async fn raw(&mut self, text: &str) {
        self.connection.write_all(text.as_bytes()).await.expect("the client is there");
        self.connection.flush().await.expect("flushes");
    }

    /// Waits until the client closes.
    async fn closed(&mut self) {
        let mut rest = Vec::new();
        // A reset is a close too.
        let _ = self.connection.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "the client sent more instead of closing");
    }
}

fn pool(servers: &[(&Server, LlmKind)]) -> Pool {
    let backends = servers
        .iter()
        .enumerate()
        .map(|(number, (server, kind))| LlmBackendConfig {
            name: format!("backend-{number}"),
            kind: *kind,
            url: server.url.clone(),
            model: "small".into(),
            api_key_env: (*kind == LlmKind::Openai).then(|| "KEY".into()),
            weight: 1,
            priority: 0,
            concurrency_max: 1,
            context_tokens: 4096,
        })
        .collect();
    let routing = LlmRouting::default();
    let config = LlmConfig { backends, max_tokens: 256, temperature: 0.5, top_k: 20, gpu_layers: None, routing };
    Pool::from_config(&config, |_| Some("secret".into()), PoolMetrics::new()).expect("valid")
}

fn request() -> GenerateRequest {
    let messages = vec![Message { role: Role::User, content: "why?".into() }];
    GenerateRequest { messages, ..GenerateRequest::default() }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(100)
}

fn delta(text: &str) -> Option<Result<GenerateEvent, GenerateError>> {
    Some(Ok(GenerateEvent::Delta(text.into())))
}

#[tokio::test]
async fn ollama_tokens_arrive_one_by_one() {
    let server = Server::start().await;
    let pool = pool(&[(&server, LlmKind::Ollama)]);
    let asked = tokio::spawn(async move { pool.generate(request(), far()).await });
    let mut exchange = server.accept().await;
    assert!(exchange.head.starts_with("POST /api/chat "), "{}", exchange.head);
    assert_eq!(exchange.body["model"], "small");
    assert_eq!(exchange.body["stream"], true);
    assert_eq!(exchange.body["messages"][0]["content"], "why?");
    for (option, value) in [("num_predict", 256.0), ("temperature", 0.5), ("top_k", 20.0)] {
        assert_eq!(exchange.body["options"][option].as_f64(), Some(value), "{option}");
    }
    exchange.begin("application/x-ndjson").await;
    exchange.write("{\"message\":{\"content\":\"Bec\"},\"done\":false}\n").await;
    let mut events = asked.await.expect("no panic").expect("begun").events;
    assert_eq!(events.next().await, delta("Bec"));
    // The second record comes in two pieces, cut within a character's escape.
    exchange.write("{\"message\":{\"content\":\"aus\\u00").await;
    exchange.write("e9\"},\"done\":false}\n").await;
    assert_eq!(events.next().await, delta("ausé"));
    exchange.write("{\"message\":{\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\",\"prompt_eval_count\":4,\"eval_count\":2}\n").await;
    exchange.end().await;
    let rest: Vec<_> = events.collect().await;
    let usage = Usage { prompt_tokens: 4, completion_tokens: 2 };
    assert_eq!(rest, [Ok(GenerateEvent::Usage(usage)), Ok(GenerateEvent::Done { finish_reason: FinishReason::Stop })]);
}

#[tokio::test]
async fn openai_tokens_arrive_one_by_one() {
    let server = Server::start().await;
    let pool = pool(&[(&server, LlmKind::Openai)]);
    let asked = tokio::spawn(async move { pool.generate(request(), far()).await });
    let mut exchange = server.accept().await;
    assert!(exchange.head.starts_with("POST /chat/completions "), "{}", exchange.head);
    assert!(exchange.head.to_ascii_lowercase().contains("authorization: bearer secret"), "{}", exchange.head);
    assert_eq!(exchange.body["max_tokens"], 256);
    exchange.begin("text/event-stream").await;
    exchange.write(": queued\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"Be\"}}]}\n\n").await;
    let mut events = asked.await.expect("no panic").expect("begun").events;
    assert_eq!(events.next().await, delta("Be"));
    exchange.write("data: {\"choices\":[{\"delta\":{\"content\":\"cause\"},\"finish_reason\":\"stop\"}]}\n\n").await;
    assert_eq!(events.next().await, delta("cause"));
    exchange
        .write("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n")
        .await;
    let rest: Vec<_> = events.collect().await;
    let usage = Usage { prompt_tokens: 4, completion_tokens: 2 };
    assert_eq!(rest, [Ok(GenerateEvent::Usage(usage)), Ok(GenerateEvent::Done { finish_reason: FinishReason::Stop })]);
}

#[tokio::test]
async fn dropping_the_answer_closes_the_connection() {
    let cases = [
        (LlmKind::Ollama, "{\"message\":{\"content\":\"x\"}}\n"),
        (LlmKind::Openai, "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n"),
    ];
    for (kind, first) in cases {
        let server = Server::start().await;
        let pool = pool(&[(&server, kind)]);
        let asked = tokio::spawn({
            let pool = pool.clone();
            async move { pool.generate(request(), far()).await }
        });
        let mut exchange = server.accept().await;
        exchange.begin("text/plain").await;
        exchange.write(first).await;
        drop(asked.await.expect("no panic").expect("begun"));
        exchange.closed().await;

        // Its place is free again.
        let next = tokio::spawn(async move { pool.generate(request(), far()).await });
        server.accept().await;
        next.abort();
    }
}

#[tokio::test]
async fn giving_up_before_the_first_token_closes_the_connection_too() {
    let server = Server::start().await;
    let pool = pool(&[(&server, LlmKind::Ollama)]);
    let asked = tokio::spawn(async move { pool.generate(request(), far()).await });
    let mut exchange = server.accept().await;
    exchange.begin("application/x-ndjson").await;
    asked.abort();
    exchange.closed().await;
}

#[tokio::test]
async fn refusals_and_failures_are_sorted_by_status() {
    let server = Server::start().await;
    let cases = [
        (
            "404 Not Found",
            "",
            "{\"error\":\"model 'small' not found\"}",
            "backend backend-0 refused the request: model 'small' not found",
        ),
        (
            "400 Bad Request",
            "",
            "{\"error\":{\"message\":\"too long\"}}",
            "backend backend-0 refused the request: too long",
        ),
        ("503 Busy", "retry-after: 7\r\n", "", "every language model backend is busy; retry in 7 s"),
        (
            "500 Oops",
            "",
            "boom",
            "no language model backend is available: backend-0: failed: status 500 Internal Server Error: boom",
        ),
    ];
    for (status, headers, body, expected) in cases {
        let pool = pool(&[(&server, LlmKind::Ollama)]);
        let asked = tokio::spawn(async move { pool.generate(request(), far()).await.err() });
        server.accept().await.answer(status, headers, body).await;
        let error = asked.await.expect("no panic").expect("refused");
        assert_eq!(error.to_string(), expected);
    }
}

#[tokio::test]
async fn an_unreachable_backend_is_replaced_by_the_next() {
    let gone = Server::start().await;
    let (there, gone_url) = (Server::start().await, gone.url.clone());
    drop(gone.listener);
    let unreachable = Server { listener: TcpListener::bind("127.0.0.1:0").await.expect("loopback"), url: gone_url };
    let pool = pool(&[(&unreachable, LlmKind::Ollama), (&there, LlmKind::Ollama)]);
    for _ in 0..2 {
        let pool = pool.clone();
        let asked = tokio::spawn(async move { pool.generate(request(), far()).await });
        let mut exchange = there.accept().await;
        exchange.answer("200 OK", "connection: close\r\n", "{\"response\":\"here\",\"done\":true}\n").await;
        let generation = asked.await.expect("no panic").expect("served");
        assert_eq!(generation.backend, "backend-1");
        assert_eq!(generation.events.collect::<Vec<_>>().await.len(), 2);
    }
}

#[tokio::test]
async fn a_connection_lost_within_the_answer_is_an_error_in_the_stream() {
    let server = Server::start().await;
    let pool = pool(&[(&server, LlmKind::Openai)]);
    let asked = tokio::spawn(async move { pool.generate(request(), far()).await });
    let mut exchange = server.accept().await;
    exchange.begin("text/event-stream").await;
    exchange.write("data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n").await;
    let mut events = asked.await.expect("no panic").expect("begun").events;
    assert_eq!(events.next().await, delta("x"));
    drop(exchange);
    assert!(matches!(events.next().await, Some(Err(GenerateError::Broken { .. }))));
    assert_eq!(events.next().await, None);
}
