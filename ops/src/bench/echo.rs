//! The handler that only echoes: what this machine can do over the same HTTP stack where nothing is searched.
//!
//! A process of its own, as a coordinator is one: `susui` started again with a hidden verb.

use std::net::Ipv4Addr;
use std::process::Stdio;

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use axum::serve::ListenerExt;
use clap::Args;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use crate::error::Error;

/// The hidden verb.
pub const ECHO_VERB: &str = "__echo";
/// Path that is echoed: that of a search, so that requests are the same to the byte.
pub const ECHO_PATH: &str = "/api/v1/search";

/// It takes none: the port is chosen here and told on stdout.
#[derive(Debug, Args)]
pub struct EchoArguments {}

/// Serves until the process is ended.
pub async fn serve(_: EchoArguments) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::local(format!("the echo: {error}"), "");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
    println!("{}", listener.local_addr().map_err(failed)?);
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let router = Router::new().route(ECHO_PATH, post(|body: Bytes| async move { body }));
    axum::serve(listener, router).await.map_err(failed)
}

/// The echo's process; dropping it ends it.
pub struct Echo {
    _child: Child,
    /// `host:port`.
    pub address: String,
}

impl Echo {
    /// Starts it and learns its port.
    pub async fn start() -> Result<Self, Error> {
        let failed = |error: std::io::Error| Error::local(format!("the echo's process: {error}"), "");
        let program = std::env::current_exe().map_err(failed)?;
        let mut child = Command::new(program)
            .arg(ECHO_VERB)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let stdout = child.stdout.take().ok_or_else(|| Error::local("the echo's process has no output", ""))?;
        let line = BufReader::new(stdout).lines().next_line().await.map_err(failed)?;
        let address = line.ok_or_else(|| Error::local("the echo's process ended", ""))?;
        Ok(Self { _child: child, address })
    }
}
