//! The command line, run as a user runs it.

use std::process::Stdio;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::process::bin_dir;

/// What one run of `susui` ended with.
#[derive(Debug)]
pub struct Run {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Run {
    /// The JSON it printed. Errors: another exit code than `expected`, or no JSON.
    pub fn json(&self, expected: i32) -> anyhow::Result<Value> {
        ensure!(self.code == expected, "exit code {} instead of {expected}: {}{}", self.code, self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).with_context(|| format!("not JSON: {}", self.stdout))
    }
}

/// Runs `susui --url URL --json ARGUMENTS`.
pub async fn susui(url: &str, arguments: &[&str]) -> anyhow::Result<Run> {
    let output = Command::new(bin_dir()?.join("susui"))
        .args(["--url", url, "--json"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .context("cannot run susui; is it built?")?;
    Ok(Run {
        code: output.status.code().context("susui was killed")?,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
