//! What a command may end with, and the exit code of each: the one table that `--help`, the manual and the code share.

use std::process::ExitCode;

use serde::Serialize;

use crate::client::ApiError;

/// Exit codes, in the order they are documented. The number of a variant never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for was done.
    Done = 0,
    /// A local failure: a file, a process, an answer that cannot be read; or a drill in which a promise was broken.
    Failed = 1,
    /// The command line is wrong (clap uses the same number).
    Usage = 2,
    /// Some of it was done; what was refused is listed.
    Partial = 3,
    /// No coordinator answers at the given address.
    Unreachable = 4,
    /// The cluster refused the request; repeating it changes nothing.
    Refused = 5,
    /// The cluster could not serve it now; repeating may help.
    Busy = 6,
    /// A check found what it looks for: an invalid file, copies that differ, something not ready, a figure below its floor.
    CheckFailed = 7,
    /// Ctrl-C or SIGTERM.
    Interrupted = 130,
}

/// Every exit code with its line of documentation.
pub const EXIT_CODES: [(Exit, &str); 9] = [
    (Exit::Done, "done"),
    (Exit::Failed, "a local failure: a file, a process, an unreadable answer; or a promise broken in a drill"),
    (Exit::Usage, "the command line is wrong"),
    (Exit::Partial, "done in part: what was refused or is missing is listed"),
    (Exit::Unreachable, "no coordinator answers at --url"),
    (Exit::Refused, "the cluster refused the request; repeating it changes nothing"),
    (Exit::Busy, "the cluster could not serve it now; repeating may help"),
    (Exit::CheckFailed, "a check failed: invalid file, copies differ, not ready, figure below its floor"),
    (Exit::Interrupted, "interrupted by Ctrl-C or SIGTERM"),
];

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a command did not end with [`Exit::Done`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value on the command line that only the command itself can judge.
    #[error("{problem}")]
    Usage {
        /// What is wrong.
        problem: String,
        /// What to write instead.
        hint: String,
    },
    /// The coordinator's port refuses or does not exist.
    #[error("cannot reach the coordinator at {url}: {detail}")]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// The connection's error.
        detail: String,
    },
    /// The cluster answered with an error.
    #[error("{0}")]
    Api(ApiError),
    /// A file or process of this machine.
    #[error("{problem}")]
    Local {
        /// What failed.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// Part of the work was refused or is missing; the details were printed.
    #[error("{0}")]
    Partial(String),
    /// A check failed; the details were printed.
    #[error("{0}")]
    CheckFailed(String),
    /// A drill measured what must not be; the report was printed.
    #[error("{0}")]
    PromiseBroken(String),
    /// Ctrl-C or SIGTERM.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// A failure of this machine.
    pub fn local(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Local { problem: problem.into(), hint: hint.into() }
    }

    /// A wrong command line.
    pub fn usage(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { problem: problem.into(), hint: hint.into() }
    }

    /// A file that could not be read or written.
    pub fn file(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::local(format!("{}: {error}", path.display()), "check the path and its permissions")
    }

    /// The code the process ends with.
    pub fn exit(&self) -> Exit {
        match self {
            Error::Usage { .. } => Exit::Usage,
            Error::Unreachable { .. } => Exit::Unreachable,
            Error::Api(error) if error.retryable => Exit::Busy,
            Error::Api(_) => Exit::Refused,
            Error::Local { .. } | Error::PromiseBroken(_) => Exit::Failed,
            Error::Partial(_) => Exit::Partial,
            Error::CheckFailed(_) => Exit::CheckFailed,
            Error::Interrupted => Exit::Interrupted,
        }
    }

    /// What to do about it; empty where there is nothing to say.
    pub fn hint(&self) -> &str {
        match self {
            Error::Usage { hint, .. } | Error::Local { hint, .. } => hint,
            Error::Unreachable { .. } => {
                "is the cluster up? `susui dev up` starts one; --url or SUSUI_URL names another coordinator"
            }
            Error::Api(error) => &error.hint,
            Error::Partial(_) | Error::CheckFailed(_) | Error::PromiseBroken(_) | Error::Interrupted => "",
        }
    }

    /// As printed to stderr under `--json`, in the shape of the HTTP API's errors.
    pub fn to_json(&self) -> serde_json::Value {
        #[derive(Serialize)]
        struct Body<'a> {
            r#type: &'a str,
            message: String,
            hint: &'a str,
            retryable: bool,
            exit_code: u8,
            #[serde(skip_serializing_if = "Option::is_none")]
            request_id: Option<&'a str>,
        }
        let (kind, request_id) = match self {
            Error::Usage { .. } => ("usage", None),
            Error::Unreachable { .. } => ("unreachable", None),
            Error::Api(error) => (error.kind.as_str(), error.request_id.as_deref()),
            Error::Local { .. } => ("local", None),
            Error::Partial(_) => ("partial", None),
            Error::CheckFailed(_) => ("check_failed", None),
            Error::PromiseBroken(_) => ("promise_broken", None),
            Error::Interrupted => ("interrupted", None),
        };
        let retryable = matches!(self.exit(), Exit::Busy | Exit::Unreachable);
        let body = Body {
            r#type: kind,
            message: self.to_string(),
            hint: self.hint(),
            retryable,
            exit_code: self.exit() as u8,
            request_id,
        };
        serde_json::json!({ "error": body })
    }
}

impl From<crate::npy::NpyError> for Error {
    fn from(error: crate::npy::NpyError) -> Self {
        Self::local(error.to_string(), "expected a two-dimensional .npy file")
    }
}

/// The exit codes as they stand under every `--help`.
pub fn exit_codes_help() -> String {
    let rows: Vec<String> = EXIT_CODES.iter().map(|(exit, text)| format!("  {:>3}  {text}", *exit as u8)).collect();
    format!("Exit codes:\n{}", rows.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_lists_the_same_codes() {
        let manual = include_str!("../manual/command-line.md");
        for (exit, text) in EXIT_CODES {
            let row = format!("| {} | {text} |", exit as u8);
            assert!(manual.contains(&row), "manual/command-line.md lacks the row {row:?}");
        }
    }

    #[test]
    fn refusals_and_overload_end_differently() {
        let api = |retryable| {
            Error::Api(ApiError {
                status: 400,
                kind: "x".into(),
                message: String::new(),
                hint: String::new(),
                retryable,
                request_id: None,
            })
        };
        assert_eq!(api(false).exit(), Exit::Refused);
        assert_eq!(api(true).exit(), Exit::Busy);
        assert_eq!(api(true).to_json()["error"]["exit_code"], 6);
    }
}
