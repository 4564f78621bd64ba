//! A real `redis-server` of Debian's for one test, killed when dropped.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use chaos_tests::ports::free_ports;
use tempfile::TempDir;

/// One server on loopback, nothing on disk.
pub(crate) struct RedisServer {
    port: u16,
    process: Child,
    _dir: TempDir,
}

impl RedisServer {
    /// Starts one on a free port and waits until it answers.
    pub(crate) fn start() -> Self {
        Self::start_at(free_ports(1).expect("a free port")[0])
    }

    /// Starts one on that port.
    pub(crate) fn start_at(port: u16) -> Self {
        let dir = tempfile::tempdir().expect("scratch directory");
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir"])
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed by ops/test");
        let server = Self { port, process, _dir: dir };
        let end = Instant::now() + Duration::from_secs(30);
        while server.command(&["PING"]) != "PONG" {
            assert!(Instant::now() < end, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// What `redis-cli` prints.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        let output = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(words).output();
        String::from_utf8_lossy(&output.expect("redis-cli runs").stdout).trim().to_owned()
    }

    /// Freezes it (`STOP`) or thaws it (`CONT`).
    pub(crate) fn signal(&self, signal: &str) {
        let done = Command::new("kill").args([&format!("-{signal}"), &self.process.id().to_string()]).status();
        assert!(done.expect("kill runs").success());
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Ended already, or ended here: both are fine.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
