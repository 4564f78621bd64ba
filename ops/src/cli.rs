//! The command line's shape: every verb, its arguments and its help. What a verb does stands in the module of its family.

use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::client::Client;
use crate::error::{Error, exit_codes_help};
use crate::output::Output;
use crate::{
    access, alias, ask, backend, bench, check_config, collection, dev, doctor, drill, eval, ingest, jobs, node, search,
    shard, status,
};

/// Where a coordinator listens unless told otherwise.
pub const URL_DEFAULT: &str = "http://127.0.0.1:8000";

/// Runs, fills and asks a Susui cluster
///
/// A first cluster on this machine, and a first question:
///
///   susui dev up
///   susui collection create docs
///   susui ingest ./notes -c docs
///   susui ask "what did we decide about backups?" -c docs
///   susui dev down
#[derive(Debug, Parser)]
#[command(name = "susui", version, max_term_width = 110, propagate_version = true, verbatim_doc_comment)]
pub struct Cli {
    /// Options every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Address of a coordinator.
    #[arg(long, global = true, env = "SUSUI_URL", default_value = URL_DEFAULT)]
    pub url: String,
    /// Key for coordinators that require one. Best given by the environment: other users see arguments.
    #[arg(long, global = true, env = "SUSUI_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Print one JSON value instead of text (progress is silent, errors are JSON on stderr).
    #[arg(long, global = true)]
    pub json: bool,
    /// Longest wait for one call; for a streamed answer, for its next piece.
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

impl Global {
    /// A client of the coordinator at `--url`.
    pub fn client(&self) -> Result<Client, Error> {
        Client::new(&self.url, self.timeout, self.api_key.as_deref())
    }

    /// The form of the output.
    pub fn output(&self) -> Output {
        Output { json: self.json }
    }
}

/// The verb families. A text on a variant would hide that of its arguments, so only the families have one here.
#[derive(Debug, Subcommand)]
#[expect(missing_docs, reason = "the arguments of each verb carry its text, and --help prints it")]
pub enum Command {
    /// Start, stop and look at a cluster on this machine.
    #[command(subcommand)]
    Dev(dev::Command),
    Status(status::Arguments),
    /// Create, list, show and delete collections.
    #[command(subcommand)]
    Collection(collection::Command),
    Ingest(ingest::Arguments),
    /// Look at uploads on their way, and try failed ones again.
    #[command(subcommand)]
    Jobs(jobs::Command),
    Search(search::Arguments),
    Ask(ask::Arguments),
    Eval(eval::Arguments),
    CheckConfig(check_config::Arguments),
    /// List nodes, drain one before it is restarted, take that back.
    #[command(subcommand)]
    Node(node::Command),
    /// List, add and remove the language model backends of a coordinator.
    #[command(subcommand)]
    Backend(backend::Command),
    /// Look into one shard, or change its copies by hand.
    #[command(subcommand)]
    Shard(shard::Command),
    /// Let another name stand for a collection, and change what it stands for.
    #[command(subcommand)]
    Alias(alias::Command),
    /// Make tenants, limit them, and see what they use.
    #[command(subcommand)]
    Tenant(access::TenantCommand),
    /// Make, list and revoke API keys.
    #[command(subcommand)]
    Key(access::KeyCommand),
    Audit(access::AuditArguments),
    Doctor(doctor::Arguments),
    /// Let a node fail on purpose, and hold what was measured against what is promised.
    #[command(subcommand)]
    Drill(drill::Command),
    /// Measure recall, speed and where the time goes.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Serve the echo that `bench http` compares with.
    #[command(name = bench::ECHO_VERB, hide = true)]
    Echo(bench::EchoArguments),
    /// Replace this process by another one in a session of its own (used by `dev up`).
    #[command(name = dev::EXEC_VERB, hide = true)]
    Exec(dev::ExecArguments),
}

/// The command line with the exit codes below the help of every verb: a script's author reads that of the verb in use.
pub fn command() -> clap::Command {
    fn with_exit_codes(command: clap::Command) -> clap::Command {
        command.after_long_help(exit_codes_help()).mut_subcommands(with_exit_codes)
    }
    with_exit_codes(Cli::command())
}

/// Parses the command line; ends the process on `--help`, `--version` and mistakes.
pub fn parse() -> Cli {
    let matches = command().get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Runs the command.
pub async fn run(cli: Cli) -> Result<(), Error> {
    let Cli { global, command } = cli;
    match command {
        Command::Dev(command) => dev::run(&global, command).await,
        Command::Status(arguments) => status::run(&global, &arguments).await,
        Command::Collection(command) => collection::run(&global, command).await,
        Command::Ingest(arguments) => ingest::run(&global, arguments).await,
        Command::Jobs(command) => jobs::run(&global, command).await,
        Command::Search(arguments) => search::run(&global, &arguments).await,
        Command::Ask(arguments) => ask::run(&global, &arguments).await,
        Command::Eval(arguments) => eval::run(&global, &arguments).await,
        Command::CheckConfig(arguments) => check_config::run(&global, &arguments),
        Command::Node(command) => node::run(&global, command).await,
        Command::Backend(command) => backend::run(&global, command).await,
        Command::Shard(command) => shard::run(&global, command).await,
        Command::Alias(command) => alias::run(&global, command).await,
        Command::Tenant(command) => access::run_tenant(&global, command).await,
        Command::Key(command) => access::run_key(&global, command).await,
        Command::Audit(arguments) => access::run_audit(&global, &arguments).await,
        Command::Doctor(arguments) => doctor::run(&global, &arguments).await,
        Command::Drill(command) => drill::run(&global, command).await,
        Command::Bench(command) => bench::run(&global, command).await,
        Command::Echo(arguments) => bench::echo(arguments).await,
        Command::Exec(arguments) => dev::exec(arguments),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn every_verb_teaches_with_an_example_and_documents_its_exit_codes() {
        fn check(command: &mut clap::Command, path: &str) {
            let help = command.render_long_help().to_string();
            if command.get_subcommands().next().is_none() {
                assert!(help.contains("Example"), "{path} --help has no example");
                assert!(help.contains("Exit codes:"), "{path} --help has no exit codes");
            }
            for sub in command.get_subcommands_mut().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
                let path = format!("{path} {}", sub.get_name());
                check(sub, &path);
            }
        }
        let mut command = command();
        command.build();
        check(&mut command, "susui");
    }
}
