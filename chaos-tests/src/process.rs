//! One real process: started from a configuration file, its output in a log file, ended for certain when dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// A running child.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// The directory with the binaries under test: `SUSUI_BIN_DIR`, else where this program is, or, for a test, the directory above.
pub fn bin_dir() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("SUSUI_BIN_DIR") {
        return Ok(dir.into());
    }
    let program = std::env::current_exe()?;
    let found = program.ancestors().skip(1).take(2).find(|dir| dir.join("susui-node").exists());
    Ok(found.or(program.parent()).context("this program has no directory")?.to_owned())
}

impl Process {
    /// Starts `binary` with `arguments` and further variables; its output is appended to `log`.
    pub fn start(
        name: &str,
        binary: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
        log: &Path,
    ) -> anyhow::Result<Self> {
        Self::start_in(None, name, binary, arguments, variables, log)
    }

    /// The same in a namespace of the network, if one is given.
    pub fn start_in(
        namespace: Option<&Path>,
        name: &str,
        binary: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
        log: &Path,
    ) -> anyhow::Result<Self> {
        let path = bin_dir()?.join(binary);
        if !path.exists() {
            bail!("{} is not built: run `ops/test`, or `cargo build --release -p node --bins` first", path.display());
        }
        let mut command = match namespace {
            None => Command::new(&path),
            // It becomes the program, so that signals meet the right process.
            Some(namespace) => {
                let mut net = std::ffi::OsString::from("--net=");
                net.push(namespace);
                let mut command = Command::new("nsenter");
                command.arg(net).arg("--").arg(&path);
                command
            }
        };
        command.args(arguments).envs(variables.iter().copied());
        Self::spawn(name, command, log).with_context(|| format!("cannot start {}", path.display()))
    }

    /// Starts a program of the system, as a server to test against.
    pub fn start_program(name: &str, program: &str, arguments: &[&str], log: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments);
        Self::spawn(name, command, log).with_context(|| format!("{program} is missing: `ops/test` installs it"))
    }

    fn spawn(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        let child = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn()?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`, and waits until the kernel has taken it away.
    pub fn kill_9(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Freezes it.
    pub fn stop(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Thaws it.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Asks it to end (SIGTERM) and returns its exit code. Errors: it does not end in time.
    pub async fn terminate(&mut self, at_most: Duration) -> anyhow::Result<Option<i32>> {
        self.signal(Signal::TERM)?;
        let child = std::sync::Mutex::new(&mut self.child);
        wait::until("the process to end", at_most, || async {
            let status = child.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.try_wait()?;
            status.map(|status| status.code()).context("still running")
        })
        .await
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Resident memory, bytes.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        self.counted("VmRSS:")
    }

    /// Resident memory that is of no file, bytes.
    pub fn anonymous_bytes(&self) -> anyhow::Result<u64> {
        self.counted("RssAnon:")
    }

    /// What the kernel counts under that name, bytes.
    fn counted(&self, name: &str) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        let kib: u64 = line.split_whitespace().next().with_context(|| format!("no number in {name}"))?.parse()?;
        Ok(kib * 1024)
    }

    /// The end of its log, for a failed test's message.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already, or ended here: both are fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
