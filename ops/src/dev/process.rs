//! Starts processes that outlive the command, recognises them later, and stops only them.
//!
//! A pid alone names nobody: the kernel gives it out again. A pid file therefore holds the pid, the start time of the
//! process in ticks since boot, and the boot. A process is ours only while all three match, and it is signalled through
//! a pidfd opened *before* that comparison, so that not even a pid reused in between can be hit.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, setsid};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::layout::write_whole;
use crate::error::Error;

/// Name of the hidden verb that a new process starts life as.
pub const EXEC_VERB: &str = "__exec";
/// How often a process that should end is looked at.
const POLL: Duration = Duration::from_millis(50);
/// Bytes of a log's end that are shown when its process died.
const LOG_TAIL_BYTES: u64 = 8 * 1024;
/// Lines of them.
const LOG_TAIL_LINES: usize = 20;

/// Which process a pid file means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The pid.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: ticks after boot at which it started. Kept across `exec`.
    pub start_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

impl Identity {
    /// Of the living process with that pid; `None` where there is none (a zombie counts as gone).
    pub fn of(pid: u32) -> Option<Self> {
        let (state, start_ticks) = stat(pid)?;
        (!matches!(state, 'Z' | 'X')).then(|| Self { pid, start_ticks, boot_id: boot_id() })
    }

    /// As a pid file says; `None` where there is no readable one.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Whether exactly this process still runs.
    pub fn is_running(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Resident memory in bytes; `None` once it is gone.
    pub fn resident_bytes(&self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib * 1024)
    }

    /// Sends a signal to exactly this process. Returns whether it was there to receive it.
    pub fn signal(&self, signal: Signal) -> Result<bool, Error> {
        let failed = |error: rustix::io::Errno| {
            Error::local(format!("cannot signal process {}: {error}", self.pid), "is it another user's?")
        };
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(false) };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            Err(error) => return Err(failed(error)),
        };
        if !self.is_running() {
            return Ok(false);
        }
        match pidfd_send_signal(handle, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Waits until it is gone. Returns false where it is still there at `deadline`.
    pub async fn wait_gone(&self, deadline: Instant) -> bool {
        while self.is_running() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }
}

/// Arguments of the hidden verb.
#[derive(Debug, Args)]
pub struct ExecArguments {
    /// Where to write who we are.
    #[arg(long)]
    pub pid_file: PathBuf,
    /// Program and its arguments.
    #[arg(required = true, last = true)]
    pub command: Vec<OsString>,
}

/// Starts `program` in a session of its own with its output appended to `log`.
///
/// The child is first this very program, which leaves our session, writes the pid file and then becomes `program`: so the pid
/// file exists before the process does anything, even if this command is killed right here.
pub fn start(program: &Path, arguments: &[&Path], pid_file: &Path, log: &Path) -> Result<Child, Error> {
    let ourselves =
        std::env::current_exe().map_err(|error| Error::local(format!("cannot find this program: {error}"), ""))?;
    let out = File::options().create(true).append(true).open(log).map_err(|error| Error::file(log, &error))?;
    let err = out.try_clone().map_err(|error| Error::file(log, &error))?;
    Command::new(ourselves)
        .arg(EXEC_VERB)
        .arg("--pid-file")
        .arg(pid_file)
        .arg("--")
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(|error| Error::local(format!("cannot start {}: {error}", program.display()), ""))
}

/// The hidden verb: leaves the session, writes the pid file, becomes the program.
pub fn exec(arguments: ExecArguments) -> Result<(), Error> {
    setsid().map_err(|error| Error::local(format!("cannot start a session: {error}"), ""))?;
    let identity = Identity::of(std::process::id())
        .ok_or_else(|| Error::local("cannot read /proc/self/stat", "is /proc mounted?"))?;
    write_whole(&arguments.pid_file, &serde_json::to_vec(&identity).expect("an identity is plain data"))?;
    let program = &arguments.command[0];
    let error = Command::new(program).args(&arguments.command[1..]).exec();
    Err(Error::local(format!("cannot run {}: {error}", program.display()), ""))
}

/// The last lines of a log, for telling why its process died.
pub fn log_tail(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

/// State letter and start ticks. The name in parentheses may hold anything, so fields are counted from the last one.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").spawn().expect("sleep starts")
    }

    #[test]
    fn a_process_is_recognised_until_it_ends() {
        let mut child = sleeper();
        let identity = Identity::of(child.id()).expect("runs");
        assert!(identity.is_running());
        assert!(identity.signal(Signal::TERM).expect("ours"));
        child.wait().expect("ends");
        assert!(!identity.is_running());
        assert!(!identity.signal(Signal::TERM).expect("gone is no error"));
    }

    #[test]
    fn a_zombie_counts_as_gone() {
        let mut child = sleeper();
        let identity = Identity::of(child.id()).expect("runs");
        identity.signal(Signal::KILL).expect("ours");
        // Nobody has waited for it yet: it stays a zombie, and must not make `down` wait for ever.
        while stat(identity.pid).is_some_and(|(state, _)| state != 'Z') {
            std::thread::yield_now();
        }
        assert!(!identity.is_running());
        child.wait().expect("ends");
    }

    #[test]
    fn a_reused_pid_is_left_alone() {
        let mut child = sleeper();
        let real = Identity::of(child.id()).expect("runs");
        let earlier_owner = Identity { start_ticks: real.start_ticks - 1, ..real.clone() };
        let before_reboot = Identity { boot_id: "another boot".into(), ..real.clone() };
        for stale in [earlier_owner, before_reboot] {
            assert!(!stale.is_running());
            assert!(!stale.signal(Signal::KILL).expect("refused quietly"));
        }
        assert!(real.is_running(), "somebody else's process was hit");
        child.kill().expect("ends");
        child.wait().expect("ends");
    }

    #[test]
    fn a_log_is_shown_from_its_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("x.log");
        let lines: Vec<String> = (0..2000).map(|number| format!("line {number}")).collect();
        fs::write(&log, lines.join("\n")).expect("writes");
        let tail = log_tail(&log);
        assert_eq!(tail.lines().count(), LOG_TAIL_LINES);
        assert!(tail.ends_with("line 1999"));
        assert_eq!(log_tail(Path::new("/nowhere")), "");
    }
}
