//! `susui check-config`: what a process would say of its configuration file, without starting it.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use cluster_config::coordinator_config::CoordinatorConfig;
use cluster_config::error::ConfigError;
use cluster_config::node_config::NodeConfig;
use serde::Serialize;

use crate::cli::Global;
use crate::error::Error;

/// Check configuration files of nodes and coordinators without starting anything
///
/// Each file is read as its process would read it; the variables of this environment that
/// override keys count. What is wrong is named by its key. A file with `node_id` is a node's.
/// Ends with exit code 7 if any file is invalid.
///
/// Examples:
///   susui check-config /etc/susui/node.toml
///   susui check-config ~/.local/share/susui/dev/conf/*.toml
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Arguments {
    /// Files to check.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Checked {
    file: PathBuf,
    kind: &'static str,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// Runs the verb.
pub fn run(global: &Global, arguments: &Arguments) -> Result<(), Error> {
    let checked = arguments.files.iter().map(|file| check(file)).collect::<Result<Vec<_>, _>>()?;
    global.output().result(&checked, || checked.iter().map(Checked::text).collect());
    match checked.iter().filter(|checked| !checked.valid).count() {
        0 => Ok(()),
        invalid => Err(Error::CheckFailed(format!("{invalid} of {} file(s) invalid", checked.len()))),
    }
}

fn check(file: &Path) -> Result<Checked, Error> {
    let text = fs::read_to_string(file).map_err(|error| Error::file(file, &error))?;
    let (kind, result) = check_text(&text, std::env::vars());
    let error = result.err();
    Ok(Checked {
        file: file.to_owned(),
        kind,
        valid: error.is_none(),
        key: error.as_ref().map(|error| error.key.clone()),
        problem: error.as_ref().map(|error| error.problem.clone()),
        hint: error.map(|error| error.hint),
    })
}

fn check_text(
    text: &str,
    environment: impl Iterator<Item = (String, String)>,
) -> (&'static str, Result<(), ConfigError>) {
    // Text that is no TOML at all is somebody's node file as likely as not; either reader names the line.
    let is_coordinator =
        text.parse::<toml::Table>().is_ok_and(|table| !table.contains_key("node_id") && table.contains_key("nodes"));
    if is_coordinator {
        ("coordinator", CoordinatorConfig::from_toml(text, environment).map(drop))
    } else {
        ("node", NodeConfig::from_toml(text, environment).map(drop))
    }
}

impl Checked {
    fn text(&self) -> String {
        match (&self.key, &self.problem, &self.hint) {
            (Some(key), Some(problem), Some(hint)) => {
                format!(
                    "{}: invalid {} configuration: {key}: {problem}\n  hint: {hint}\n",
                    self.file.display(),
                    self.kind
                )
            }
            _ => format!("{}: valid {} configuration\n", self.file.display(), self.kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_recognised_and_its_fault_named() {
        let node = include_str!("../../cluster-config/examples/node.toml");
        let coordinator = include_str!("../../cluster-config/examples/coordinator.toml");
        let none = || std::iter::empty();
        assert!(matches!(check_text(node, none()), ("node", Ok(()))));
        assert!(matches!(check_text(coordinator, none()), ("coordinator", Ok(()))));
        let (kind, result) = check_text(&node.replace("node_id = 1", "node_id = 0"), none());
        assert_eq!((kind, result.expect_err("invalid").key.as_str()), ("node", "node_id"));
        let environment = [("CACHE_TTL_SECONDS".to_owned(), "soon".to_owned())];
        assert!(check_text(coordinator, environment.into_iter()).1.is_err());
        assert!(check_text("not toml [", none()).1.is_err());
    }
}
