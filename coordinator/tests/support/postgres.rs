//! A real Postgres for one test: a scratch directory, a Unix socket in it, gone with the value.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for the server to take connections, on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running server.
pub(crate) struct PostgresServer {
    child: Child,
    url: String,
    dir: tempfile::TempDir,
}

impl PostgresServer {
    /// Makes a database cluster and starts its server; returns once it takes connections.
    ///
    /// Text is compared by the rules of English (ICU), so that whatever needs the order of bytes has to say so.
    pub(crate) async fn start() -> Self {
        let bin = bin_dir();
        let dir = tempfile::tempdir().expect("scratch directory");
        if is_root() {
            let given = Command::new("chown").arg("postgres").arg(dir.path()).status().expect("chown runs");
            assert!(given.success(), "the user postgres comes with Debian's package postgresql");
        }
        let data = dir.path().join("data");
        let made = as_server_user(&bin.join("initdb"))
            .args(["--username=susui", "--auth=trust", "--encoding=UTF8", "--no-sync", "--locale=C.UTF-8"])
            .args(["--locale-provider=icu", "--icu-locale=en"])
            .arg("--pgdata")
            .arg(&data)
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let child = as_server_user(&bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(dir.path())
            .args(["-c", "listen_addresses=", "-c", "shared_buffers=16MB", "-c", "log_min_messages=fatal"])
            .stdout(Stdio::null())
            .spawn()
            .expect("postgres runs");
        let url = format!("postgres://susui@localhost/postgres?host={}", dir.path().display());
        let server = Self { child, url, dir };
        server.wait_until_ready().await;
        server
    }

    /// URL of a database of its own.
    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    async fn wait_until_ready(&self) {
        sqlx::any::install_default_drivers();
        let until = Instant::now() + START_TIMEOUT;
        // The server writes its state into the last line of this file.
        let state = self.dir.path().join("data/postmaster.pid");
        while !std::fs::read_to_string(&state).is_ok_and(|text| text.trim_end().ends_with("ready")) {
            assert!(Instant::now() < until, "postgres is not ready after {START_TIMEOUT:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the server at once, as a crash would; what was committed is on its disk.
    pub(crate) fn stop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let _ = Command::new("kill").args(["-QUIT", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Postgres refuses to run as root; the server ends with this test even if the test is killed.
fn as_server_user(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "QUIT"]);
    if is_root() {
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]);
    }
    command.arg("--").arg(program).current_dir("/");
    command
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("id runs");
    output.stdout == b"0\n"
}

/// Debian keeps the server's programs out of PATH; the newest version is taken.
fn bin_dir() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().expect("postgres is installed: apt-get install postgresql; ops/test does it").1
}
