//! Places at which a test may end the process as `kill -9` would, for the proof that no stage loses or doubles anything.
//! Set by `SUSUI_FAILPOINTS`, where the configuration allows test hooks: `ingest-parsed=10*off->return` ends it at the eleventh
//! document that gets so far.

use anyhow::Context;
use cluster_config::node_config::FAILPOINTS_VARIABLE;

/// A job was claimed; nothing is done yet.
pub(super) const CLAIMED: &str = "ingest-claimed";
/// The text is extracted and kept.
pub(super) const PARSED: &str = "ingest-parsed";
/// The text is cut.
pub(super) const CHUNKED: &str = "ingest-chunked";
/// The vectors are there and kept.
pub(super) const EMBEDDED: &str = "ingest-embedded";
/// The shards have acknowledged; the catalog does not know.
pub(super) const WRITTEN: &str = "ingest-written";
/// The job is done; the caller does not know.
pub(super) const FINISHED: &str = "ingest-finished";

/// Ends the process here if the point is set.
pub(super) fn reach(name: &'static str) {
    fail::fail_point!(name, |_| {
        tracing::warn!(name, "a failpoint ends the process");
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    });
}

/// Sets `name=actions`, separated by semicolons. Errors: a part that the `fail` crate cannot read.
pub fn set(points: &str) -> anyhow::Result<()> {
    for point in points.split(';').filter(|point| !point.trim().is_empty()) {
        let (name, actions) =
            point.split_once('=').with_context(|| format!("{FAILPOINTS_VARIABLE}: no = in {point}"))?;
        fail::cfg(name.trim(), actions)
            .map_err(|problem| anyhow::anyhow!("{FAILPOINTS_VARIABLE}: {point}: {problem}"))?;
    }
    tracing::warn!(points, "failpoints are set");
    Ok(())
}
