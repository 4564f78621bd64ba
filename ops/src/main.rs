//! `susui`: parse, run, report, exit.

use std::process::ExitCode;

use ops::cli::{self, Cli};
use ops::error::{Error, Exit};

fn main() -> ExitCode {
    let cli = cli::parse();
    let json = cli.global.json;
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Error::local(format!("cannot start the runtime: {error}"), ""), json),
    };
    match runtime.block_on(interruptible(cli)) {
        Ok(()) => Exit::Done.into(),
        Err(error) => report(&error, json),
    }
}

/// Runs the command until it ends, or until Ctrl-C or SIGTERM drops it. What a command leaves behind when dropped stands in
/// its help: processes of `dev up` go on running, accepted documents go on being indexed.
async fn interruptible(cli: Cli) -> Result<(), Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())
        .map_err(|error| Error::local(format!("cannot listen for signals: {error}"), ""))?;
    tokio::select! {
        done = cli::run(cli) => done,
        _ = tokio::signal::ctrl_c() => Err(Error::Interrupted),
        _ = terminate.recv() => Err(Error::Interrupted),
    }
}

fn report(error: &Error, json: bool) -> ExitCode {
    if json {
        eprintln!("{}", error.to_json());
    } else {
        eprintln!("susui: {error}");
        if !error.hint().is_empty() {
            eprintln!("  hint: {}", error.hint());
        }
    }
    error.exit().into()
}
