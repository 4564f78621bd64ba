//! A real Postgres of Debian's for one test: a scratch directory, a Unix socket in it, gone with the value.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::wait;

/// Longest wait for the server to take connections, on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// What tests need of a server that holds next to nothing.
const SMALL: &str = "shared_buffers = 16MB\n";

/// A running server. Dropping it ends it.
pub struct PostgresServer {
    child: Child,
    dir: tempfile::TempDir,
}

impl PostgresServer {
    /// A small server, ready for connections.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(SMALL).await
    }

    /// A server as `initdb` sets it up (which is how Debian ships it) but for `settings`, lines of `postgresql.conf`.
    ///
    /// Text is compared by the rules of English (ICU), so that whatever needs the order of bytes has to say so.
    pub async fn start_with(settings: &str) -> anyhow::Result<Self> {
        let bin = bin_dir()?;
        let dir = tempfile::tempdir()?;
        if is_root() {
            let given = Command::new("chown").arg("postgres").arg(dir.path()).status()?;
            ensure!(given.success(), "the user postgres comes with Debian's package postgresql");
        }
        let data = dir.path().join("data");
        let made = as_server_user(&bin.join("initdb"))
            .args(["--username=susui", "--auth=trust", "--encoding=UTF8", "--no-sync", "--locale=C.UTF-8"])
            .args(["--locale-provider=icu", "--icu-locale=en"])
            .arg("--pgdata")
            .arg(&data)
            .output()?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        // Written into the file that is there, which belongs to the server's user.
        let written = data.join("postgresql.conf");
        let made = std::fs::read_to_string(&written)?;
        std::fs::write(&written, format!("{made}\n{settings}"))?;
        let child = as_server_user(&bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(dir.path())
            .args(["-c", "listen_addresses=", "-c", "log_min_messages=fatal"])
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start postgres")?;
        let server = Self { child, dir };
        // The server writes its state into the last line of this file.
        let state = data.join("postmaster.pid");
        wait::until("postgres to take connections", START_TIMEOUT, || async {
            let text = std::fs::read_to_string(&state)?;
            ensure!(text.trim_end().ends_with("ready"), "{text}");
            Ok(())
        })
        .await?;
        Ok(server)
    }

    /// URL of a database of its own.
    pub fn url(&self) -> String {
        format!("postgres://susui@localhost/postgres?host={}", self.dir.path().display())
    }

    /// Runs a statement as a shell would. Errors carry what the server said.
    pub fn execute(&self, sql: &str) -> anyhow::Result<()> {
        self.query(sql).map(drop)
    }

    /// The same; gives the rows, with `|` between columns.
    pub fn query(&self, sql: &str) -> anyhow::Result<Vec<String>> {
        let psql = Command::new(bin_dir()?.join("psql"))
            .args([
                "--no-psqlrc",
                "--tuples-only",
                "--no-align",
                "--quiet",
                "--set",
                "ON_ERROR_STOP=1",
                "--username=susui",
                "--dbname=postgres",
                "--command",
                sql,
            ])
            .arg("--host")
            .arg(self.dir.path())
            .output()?;
        ensure!(psql.status.success(), "psql: {}", String::from_utf8_lossy(&psql.stderr));
        Ok(String::from_utf8(psql.stdout)?.lines().map(str::to_owned).collect())
    }

    /// Ends the server at once, as a crash would; what was committed is on its disk.
    pub fn stop(&mut self) {
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
    rustix::process::geteuid().is_root()
}

/// Debian keeps the server's programs out of PATH; the newest version is taken.
fn bin_dir() -> anyhow::Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    found.sort();
    Ok(found.pop().context("postgres is not installed: `ops/test` installs it")?.1)
}
