//! `susui doctor`: what is not as it should be. So far of the catalog's database: its settings against the shipped profile, its pool,
//! its upkeep.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::Args;
use cluster_config::units::ByteSize;
use serde::{Deserialize, Serialize};

use crate::cli::Global;
use crate::client::Client;
use crate::error::Error;
use crate::output::{row, table};

/// The engine that is built in, as the API names it.
const SQLITE: &str = "sqlite";
/// The profile that is shipped, and the memory that it is made for.
const PROFILE: &str = include_str!("../deploy/postgres/susui.conf");
const PROFILE_MEMORY: ByteSize = ByteSize(4 << 30);
/// Of these the profile gives a share of the machine's memory.
const BY_MEMORY: [&str; 3] = ["shared_buffers", "effective_cache_size", "maintenance_work_mem"];
/// More memory for maintenance brings nothing.
const MAINTENANCE_BYTES_MAX: f64 = (1_u64 << 30) as f64;
/// Values within this factor of the advice are fine: advice is a size, not a measurement.
const TOLERANCE: f64 = 1.5;
/// The upkeep runs daily: two days without it are too many.
const UPKEEP_AGE_MAX_MS: i64 = 2 * 24 * 3600 * 1000;
/// Waits that timed out are counted since the coordinator's start. Whether they still do shows within this time: under load that exceeds
/// the pool, callers give up all the time.
const TIMEOUTS_LOOK: Duration = Duration::from_secs(10);

const SETTING_HINT: &str =
    "settings: put ops/deploy/postgres/susui.conf where include_dir of postgresql.conf points to, and restart Postgres";
const CONNECTIONS_HINT: &str = "connections: raise max_connections, or lower pool_size and max_overflow in [catalog]";
const POSTGRES_TIMEOUTS_HINT: &str = "timeouts: raise pool_size in [catalog], or add coordinators";
const SQLITE_TIMEOUTS_HINT: &str = "timeouts: SQLite takes one write at a time; send fewer uploads at once, or move the catalog to Postgres (url in [catalog])";
const UPKEEP_HINT: &str =
    "upkeep: the coordinator's log says why it did not run; POST /api/v1/catalog/upkeep runs it now";

/// Compare the catalog's database with what is advised
///
/// Reads the live settings of the Postgres behind the coordinator and compares them with the
/// shipped profile (ops/deploy/postgres/susui.conf), its memory scaled to --postgres-memory.
/// Sizes within half of the advice are fine. Of an SQLite catalog only waits and upkeep are
/// judged. Where waits for the catalog have timed out since the coordinator's start, it looks
/// for ten seconds whether they still do. Ends with exit code 7 if something is not fine.
///
/// Examples:
///   susui doctor
///   susui doctor --postgres-memory 16GiB
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Arguments {
    /// Memory of the machine that runs Postgres.
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = parse_size)]
    pub postgres_memory: ByteSize,
}

fn parse_size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|error| format!("{error}"))
}

#[derive(Debug, Deserialize)]
struct Catalog {
    engine: String,
    pool: Pool,
    upkeep: Vec<Upkeep>,
    settings: Vec<Setting>,
}

#[derive(Debug, Deserialize)]
struct Pool {
    max: u32,
    timeouts: u64,
}

#[derive(Debug, Deserialize)]
struct Upkeep {
    task: String,
    ran_ms: i64,
}

#[derive(Debug, Deserialize)]
struct Setting {
    name: String,
    value: String,
    unit: String,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    what: String,
    live: String,
    advised: String,
    fine: bool,
    /// What to do where it is not.
    hint: &'static str,
}

/// Runs the verb.
pub async fn run(global: &Global, arguments: &Arguments) -> Result<(), Error> {
    let client = global.client()?;
    let mut catalog = fetch(&client).await?;
    let mut timeouts_now = 0;
    if catalog.pool.timeouts > 0 {
        let before = catalog.pool.timeouts;
        global.output().note("waits for the catalog have timed out: looking whether they still do");
        tokio::time::sleep(TIMEOUTS_LOOK).await;
        catalog = fetch(&client).await?;
        timeouts_now = catalog.pool.timeouts.saturating_sub(before);
    }
    let now_ms = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as i64);
    let findings = examine(&catalog, timeouts_now, arguments.postgres_memory, now_ms);
    global.output().result(&findings, || findings_text(&catalog.engine, &findings));
    match findings.iter().filter(|finding| !finding.fine).count() {
        0 => Ok(()),
        count => Err(Error::CheckFailed(format!("{count} of {} not as advised", findings.len()))),
    }
}

async fn fetch(client: &Client) -> Result<Catalog, Error> {
    client.get(&["api", "v1", "catalog"]).await
}

/// `timeouts_now`: waits that timed out while we looked.
fn examine(catalog: &Catalog, timeouts_now: u64, memory: ByteSize, now_ms: i64) -> Vec<Finding> {
    let advice = profile();
    let mut findings: Vec<Finding> = catalog
        .settings
        .iter()
        .filter_map(|setting| Some(compare(setting, advice.get(setting.name.as_str())?, memory)))
        .collect();
    if let Some(connections) = catalog.settings.iter().find(|setting| setting.name == "max_connections") {
        findings.push(Finding {
            what: "connections of this coordinator".into(),
            live: catalog.pool.max.to_string(),
            advised: format!("below max_connections, {}", connections.value),
            fine: connections.value.parse().is_ok_and(|max: u32| catalog.pool.max < max),
            hint: CONNECTIONS_HINT,
        });
    }
    findings.push(Finding {
        what: "waits for the catalog that timed out".into(),
        live: format!("{timeouts_now} now, {} since start", catalog.pool.timeouts),
        advised: "none now".into(),
        fine: timeouts_now == 0,
        hint: if catalog.engine == SQLITE { SQLITE_TIMEOUTS_HINT } else { POSTGRES_TIMEOUTS_HINT },
    });
    for upkeep in &catalog.upkeep {
        let age_ms = now_ms - upkeep.ran_ms;
        findings.push(Finding {
            what: format!("upkeep {}", upkeep.task),
            live: if upkeep.ran_ms == 0 { "never ran".into() } else { format!("{} h ago", age_ms / 3_600_000) },
            advised: "within two days".into(),
            fine: age_ms <= UPKEEP_AGE_MAX_MS,
            hint: UPKEEP_HINT,
        });
    }
    findings
}

/// The settings of the shipped profile.
fn profile() -> BTreeMap<&'static str, &'static str> {
    let lines = PROFILE.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    lines.filter_map(|line| line.split_once('=')).map(|(name, value)| (name.trim(), value.trim())).collect()
}

fn compare(setting: &Setting, advised: &str, memory: ByteSize) -> Finding {
    let finding = |live: String, advised: String, fine: bool| Finding {
        what: setting.name.clone(),
        live,
        advised,
        fine,
        hint: SETTING_HINT,
    };
    let live = in_bytes(&setting.value, &setting.unit);
    let (Some(live_number), Some(advised_number)) = (live, as_number(advised)) else {
        // Words: on, off.
        return finding(setting.value.clone(), advised.into(), setting.value == advised);
    };
    let mut wanted = advised_number;
    if BY_MEMORY.contains(&setting.name.as_str()) {
        wanted *= memory.0 as f64 / PROFILE_MEMORY.0 as f64;
    }
    if setting.name == "maintenance_work_mem" {
        wanted = wanted.min(MAINTENANCE_BYTES_MAX);
    }
    let fine = live_number <= wanted * TOLERANCE && live_number >= wanted / TOLERANCE;
    finding(shown(live_number, setting), shown(wanted, setting), fine)
}

fn shown(number: f64, setting: &Setting) -> String {
    if setting.unit.is_empty() { number.to_string() } else { crate::output::bytes(number as u64) }
}

/// A live value: `setting` counts in `unit`.
fn in_bytes(value: &str, unit: &str) -> Option<f64> {
    let count: f64 = value.parse().ok()?;
    let unit = if unit.is_empty() { 1.0 } else { as_number(unit)? };
    Some(count * unit)
}

/// `16MB`, `8kB`, `kB`, `0.9` as a number; sizes in bytes, counted as Postgres does.
fn as_number(text: &str) -> Option<f64> {
    let digits = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (count, unit) = text.split_at(digits);
    let count: f64 = if count.is_empty() { 1.0 } else { count.parse().ok()? };
    let unit = match unit {
        "" => 1.0,
        "B" => 1.0,
        "kB" => 1024.0,
        "MB" => 1024.0 * 1024.0,
        "GB" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some(count * unit)
}

fn findings_text(engine: &str, findings: &[Finding]) -> String {
    let header = std::iter::once(row(["", "WHAT", "LIVE", "ADVISED"]));
    let rows = findings
        .iter()
        .map(|finding| row([if finding.fine { "ok" } else { "!!" }, &finding.what, &finding.live, &finding.advised]));
    let mut text = format!("catalog on {engine}\n{}", table(&header.chain(rows).collect::<Vec<_>>()));
    let hints: BTreeSet<&str> = findings.iter().filter(|finding| !finding.fine).map(|finding| finding.hint).collect();
    for hint in hints {
        text.push('\n');
        text.push_str(hint);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(name: &str, value: &str, unit: &str) -> Setting {
        Setting { name: name.into(), value: value.into(), unit: unit.into() }
    }

    fn judge(name: &str, value: &str, unit: &str, memory: u64) -> bool {
        let advice = profile();
        compare(&setting(name, value, unit), advice[name], ByteSize(memory << 30)).fine
    }

    #[test]
    fn the_profile_is_fine_by_its_own_measure() {
        assert!(profile().len() >= 15, "{:?}", profile());
        // As Postgres shows the profile's values.
        for (name, value, unit) in [
            ("shared_buffers", "131072", "8kB"),
            ("effective_cache_size", "393216", "8kB"),
            ("maintenance_work_mem", "262144", "kB"),
            ("work_mem", "4096", "kB"),
            ("max_wal_size", "4096", "MB"),
            ("wal_buffers", "2048", "8kB"),
            ("checkpoint_completion_target", "0.9", ""),
            ("random_page_cost", "1.1", ""),
            ("synchronous_commit", "on", ""),
        ] {
            assert!(judge(name, value, unit, 4), "{name}");
        }
    }

    #[test]
    fn what_differs_is_found_and_memory_scales() {
        // What a fresh Postgres has.
        assert!(!judge("shared_buffers", "16384", "8kB", 4));
        assert!(!judge("random_page_cost", "4", "", 4));
        assert!(!judge("synchronous_commit", "off", "", 4));
        assert!(judge("shared_buffers", "524288", "8kB", 16));
        assert!(!judge("shared_buffers", "131072", "8kB", 16));
        assert!(judge("maintenance_work_mem", "1048576", "kB", 64), "not more than a gigabyte");
    }

    fn catalog(engine: &str, timeouts: u64) -> Catalog {
        Catalog {
            engine: engine.into(),
            pool: Pool { max: 60, timeouts },
            upkeep: vec![Upkeep { task: "analyze".into(), ran_ms: 0 }],
            settings: vec![setting("max_connections", "50", "")],
        }
    }

    fn unwell(catalog: &Catalog, timeouts_now: u64) -> Vec<(String, &'static str)> {
        let findings = examine(catalog, timeouts_now, PROFILE_MEMORY, i64::MAX / 2);
        findings.into_iter().filter(|finding| !finding.fine).map(|finding| (finding.what, finding.hint)).collect()
    }

    #[test]
    fn pool_and_upkeep_are_judged() {
        let found: Vec<String> = unwell(&catalog("postgres", 5), 3).into_iter().map(|(what, _)| what).collect();
        let expected = [
            "max_connections",
            "connections of this coordinator",
            "waits for the catalog that timed out",
            "upkeep analyze",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn waits_that_timed_out_long_ago_are_no_reason_to_worry_and_each_engine_has_its_own_remedy() {
        let timeouts = |engine: &str, now: u64| -> Vec<&str> {
            let found = unwell(&catalog(engine, 7), now).into_iter();
            found.filter(|(what, _)| what.starts_with("waits")).map(|(_, hint)| hint).collect()
        };
        assert_eq!(timeouts("postgres", 0), [""; 0]);
        assert_eq!(timeouts("postgres", 1), [POSTGRES_TIMEOUTS_HINT]);
        assert_eq!(timeouts(SQLITE, 1), [SQLITE_TIMEOUTS_HINT]);
    }
}
