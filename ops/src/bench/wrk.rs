//! Lets wrk send a load, so that the figures do not rest on this program's client alone.

use std::io::Write;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::load::Load;
use crate::error::Error;

/// The same file that `ops/deploy/load/` ships.
const SCRIPT: &str = include_str!("../../deploy/load/search.lua");
/// Long enough to leave the first second behind.
const SECONDS: u32 = 8;

/// What wrk saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WrkReport {
    /// Answered.
    pub requests: u64,
    /// Per second.
    pub requests_per_second: f64,
    /// Median.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Answers that were not 2xx, broken connections and timeouts.
    pub errors: u64,
}

/// Runs wrk with one thread over the load's connections. Errors: wrk is not there, or a request failed.
pub async fn run(load: &Load) -> Result<WrkReport, Error> {
    let script = temporary(SCRIPT.as_bytes())?;
    let mut bodies = Vec::new();
    for body in load.bodies.iter() {
        bodies.extend_from_slice(body);
        bodies.push(b'\n');
    }
    let bodies = temporary(&bodies)?;
    let run = Command::new("wrk")
        .args(["--threads", "1", "--connections", &load.connections.to_string()])
        .args(["--duration", &format!("{SECONDS}s"), "--timeout", "10s", "--script"])
        .arg(script.path())
        .arg(format!("http://{}{}", load.address, load.path))
        .env("SUSUI_BODIES", bodies.path())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| Error::local(format!("wrk: {error}"), "install it: apt-get install wrk"))?;
    let printed = String::from_utf8_lossy(&run.stdout);
    let report = read(&printed).ok_or_else(|| {
        let log = String::from_utf8_lossy(&run.stderr);
        Error::local(format!("wrk ended with {} and without figures: {}", run.status, log.trim_end()), "")
    })?;
    if report.errors > 0 {
        return Err(Error::CheckFailed(format!("{} of {} requests of wrk failed", report.errors, report.requests)));
    }
    Ok(report)
}

/// The line of JSON that the script prints at the end.
fn read(printed: &str) -> Option<WrkReport> {
    printed.lines().rev().find_map(|line| serde_json::from_str(line).ok())
}

fn temporary(bytes: &[u8]) -> Result<tempfile::NamedTempFile, Error> {
    let failed = |error: std::io::Error| Error::local(format!("no scratch file: {error}"), "");
    let mut file = tempfile::NamedTempFile::new().map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_s_line_is_found_behind_wrk_s_own() {
        let line = r#"{"requests": 10, "requests_per_second": 5.0, "p50_ms": 1.5, "p99_ms": 3.25, "errors": 0}"#;
        let report =
            read(&format!("Running 8s test\n  5 requests in 2s\nRequests/sec: 5\n{line}\n")).expect("a report");
        assert_eq!((report.requests, report.p99_ms), (10, 3.25));
        assert_eq!(read("Running 8s test\n"), None);
    }
}
