//! Stands in for `susui-node` and `susui-coordinator` in the tests of `susui dev`: reads `http_listen` from `--config` and
//! answers `/readyz`, once asked a few times, with 200. Ignores SIGTERM where a file `stubborn` lies in its data directory.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;

fn main() {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--config");
    let config = arguments.nth(1).expect("--config FILE");
    let config: toml::Table = std::fs::read_to_string(config).expect("a file").parse().expect("TOML");
    let data_dir = PathBuf::from(config["data_dir"].as_str().expect("text"));
    if data_dir.join("broken").exists() {
        eprintln!("cannot start: this data directory is broken");
        std::process::exit(3);
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    if data_dir.join("stubborn").exists() {
        runtime.spawn(async {
            let kind = tokio::signal::unix::SignalKind::terminate();
            let mut terminate = tokio::signal::unix::signal(kind).expect("a handler");
            while terminate.recv().await.is_some() {}
        });
    }
    let listener = TcpListener::bind(config["http_listen"].as_str().expect("text")).expect("a free port");
    let mut asked = 0;
    for stream in listener.incoming() {
        let mut stream = stream.expect("a connection");
        let mut request = String::new();
        let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
        while reader.read_line(&mut request).is_ok_and(|bytes| bytes > 2) {}
        asked += 1;
        let (status, body) = if asked > 2 { ("200 OK", "ready") } else { ("503 Service Unavailable", "no leader yet") };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        let _ = stream.write_all(answer.as_bytes());
    }
}
