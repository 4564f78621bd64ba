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
/// Longest wait for a new process to write its pid file, which is the first thing it does.
const PID_FILE_WAIT: Duration = Duration::from_secs(30);
/// How often the pid file is looked at meanwhile.
const PID_FILE_POLL: Duration = Duration::from_millis(2);
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
    /// Of the living process with that pid; `None` where there is none.
    ///
    /// A zombie counts as gone once it has no other thread: its first thread may have ended while others still hold its ports and
    /// its locks.
    pub fn of(pid: u32) -> Option<Self> {
        let Stat { state, threads, start_ticks } = stat(pid)?;
        let is_gone = matches!(state, 'Z' | 'X') && threads <= 1;
        (!is_gone).then(|| Self { pid, start_ticks, boot_id: boot_id() })
    }

    /// As a pid file says; `None` where there is no readable one.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Whether exactly this process still runs.
    pub fn is_running(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Whether it stands still, stopped by a signal (SIGSTOP) until another one (SIGCONT) lets it go on.
    pub fn is_stopped(&self) -> bool {
        self.is_running() && stat(self.pid).is_some_and(|stat| stat.state == 'T')
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
/// file exists before the process does anything, even if this command is killed right here. Returns once the pid file names the
/// child (or the child has ended), so that whoever looks at the directory next finds it.
pub async fn start(program: &Path, arguments: &[&Path], pid_file: &Path, log: &Path) -> Result<Child, Error> {
    let ourselves =
        std::env::current_exe().map_err(|error| Error::local(format!("cannot find this program: {error}"), ""))?;
    let out = File::options().create(true).append(true).open(log).map_err(|error| Error::file(log, &error))?;
    let err = out.try_clone().map_err(|error| Error::file(log, &error))?;
    let cannot_start = |error| Error::local(format!("cannot start {}: {error}", program.display()), "");
    let mut child = Command::new(ourselves)
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
        .map_err(cannot_start)?;
    let deadline = Instant::now() + PID_FILE_WAIT;
    while Identity::read(pid_file).is_none_or(|identity| identity.pid != child.id()) {
        if child.try_wait().map_err(cannot_start)?.is_some() {
            break;
        }
        if Instant::now() >= deadline {
            child.kill().map_err(cannot_start)?;
            child.wait().map_err(cannot_start)?;
            return Err(Error::local(
                format!("{} did not write {} in time", program.display(), pid_file.display()),
                "is the machine overloaded, or the disk full?",
            ));
        }
        tokio::time::sleep(PID_FILE_POLL).await;
    }
    Ok(child)
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

/// Fields 3, 20 and 22 of `/proc/PID/stat`.
struct Stat {
    state: char,
    threads: u32,
    start_ticks: u64,
}

/// The name in parentheses may hold anything, so fields are counted from the last one.
fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let threads = fields.nth(16)?.parse().ok()?;
    let start_ticks = fields.nth(1)?.parse().ok()?;
    Some(Stat { state, threads, start_ticks })
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
        while stat(identity.pid).is_some_and(|stat| stat.state != 'Z') {
            std::thread::yield_now();
        }
        assert!(!identity.is_running());
        child.wait().expect("ends");
    }

    /// A process whose first thread has ended while a second one sleeps: what a killed node looks like until its last thread is gone.
    #[test]
    fn a_zombie_with_threads_left_still_runs() {
        let program = "import ctypes, threading, time\n\
                       threading.Thread(target=time.sleep, args=(600,)).start()\n\
                       ctypes.CDLL(None).pthread_exit(None)";
        let Ok(mut child) = Command::new("python3").args(["-c", program]).stderr(Stdio::null()).spawn() else {
            return eprintln!("skipped: no python3");
        };
        while stat(child.id()).is_some_and(|stat| stat.state != 'Z') {
            std::thread::yield_now();
        }
        assert!(Identity::of(child.id()).is_some(), "its second thread still runs");
        child.kill().expect("ends");
        child.wait().expect("ends");
    }

    #[test]
    fn fields_are_counted_from_the_last_parenthesis() {
        let text = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 5 6 0 0 20 0 9 0 4242 1000 0";
        let stat = parse_stat(text).expect("a stat line");
        assert_eq!((stat.state, stat.threads, stat.start_ticks), ('S', 9, 4242));
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
