//! `susui tenant`, `susui key`, `susui audit`: who may call, how much, and what operators did.

use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cli::Global;
use crate::client::Client;
use crate::error::Error;
use crate::output::{bytes, row, table};

/// Rows of one page.
const PAGE_ROWS: &str = "1000";

/// The verbs of `susui tenant`.
#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Make a tenant, or replace its settings: what is left out has no limit. Safe to repeat
    ///
    /// Requests and tokens are counted over all coordinators where they share a Redis, else by
    /// each for itself, as streams always are. Stored bytes are counted in the catalog.
    ///
    /// Examples:
    ///   susui tenant set acme
    ///   susui tenant set acme --requests-per-second 50 --tokens-per-minute 20000 --stored-bytes 1073741824
    ///   susui tenant set acme --disabled
    #[command(verbatim_doc_comment)]
    Set(TenantSet),
    /// List all tenants with their limits
    ///
    /// Example:
    ///   susui tenant list
    #[command(verbatim_doc_comment)]
    List,
    /// What a tenant stores, and the tokens it used by day and model
    ///
    /// Example:
    ///   susui tenant usage acme
    #[command(verbatim_doc_comment)]
    Usage {
        /// The tenant.
        tenant: String,
    },
}

/// Arguments of `susui tenant set`.
#[derive(Debug, Args)]
pub struct TenantSet {
    /// Its name.
    pub tenant: String,
    /// Requests of any kind.
    #[arg(long, value_name = "N")]
    pub requests_per_second: Option<u32>,
    /// Tokens read and written by language models.
    #[arg(long, value_name = "N")]
    pub tokens_per_minute: Option<u32>,
    /// Streams open at one time.
    #[arg(long, value_name = "N")]
    pub streams: Option<u32>,
    /// Bytes of its uploaded documents.
    #[arg(long, value_name = "BYTES")]
    pub stored_bytes: Option<u64>,
    /// Refuse its keys; nothing of it is deleted.
    #[arg(long)]
    pub disabled: bool,
}

/// The verbs of `susui key`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key, and print it: it is shown this once, only its hash is kept
    ///
    /// Scopes: read, write, admin; each includes those before it. An admin key operates the whole
    /// cluster, so it can only belong to the tenant "default".
    ///
    /// Examples:
    ///   susui key create "web shop" --tenant acme --scope read
    ///   susui key create "night job" --tenant acme --scope write --ttl 90d
    #[command(verbatim_doc_comment)]
    Create {
        /// What it is for.
        name: String,
        /// Whose documents it opens.
        #[arg(long, default_value = "default")]
        tenant: String,
        /// What it allows.
        #[arg(long, value_name = "read|write|admin", default_value = "read")]
        scope: String,
        /// Life of the key; without end if not given.
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        ttl: Option<Duration>,
    },
    /// List a tenant's keys, without their secrets
    ///
    /// Example:
    ///   susui key list --tenant acme
    #[command(verbatim_doc_comment)]
    List {
        /// The tenant.
        #[arg(long, default_value = "default")]
        tenant: String,
    },
    /// Revoke a key: at other coordinators within five seconds. Safe to repeat
    ///
    /// Example:
    ///   susui key revoke 0199c0de-0000-7000-8000-000000000001
    #[command(verbatim_doc_comment)]
    Revoke {
        /// Id of the key, as `susui key list` prints it.
        id: String,
    },
}

/// Print what operators did, newest first
///
/// Example:
///   susui audit --limit 20
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct AuditArguments {
    /// Calls shown, at most 1000.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Tenant {
    tenant: String,
    disabled: bool,
    requests_per_second: Option<u32>,
    tokens_per_minute: Option<u32>,
    streams_max: Option<u32>,
    stored_bytes_max: Option<u64>,
    stored_bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Tenants {
    tenants: Vec<Tenant>,
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Usage {
    tenant: String,
    stored_bytes: u64,
    days: Vec<UsageDay>,
}

#[derive(Debug, Serialize, Deserialize)]
struct UsageDay {
    day: u64,
    model: String,
    requests: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Key {
    id: String,
    tenant: String,
    name: String,
    scope: String,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Keys {
    keys: Vec<Key>,
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Audit {
    calls: Vec<Call>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Call {
    at_ms: u64,
    tenant: String,
    key_id: Option<String>,
    request_id: String,
    action: String,
    target: String,
    status: u16,
}

/// Runs one verb of `susui tenant`.
pub async fn run_tenant(global: &Global, command: TenantCommand) -> Result<(), Error> {
    let (client, output) = (global.client()?, global.output());
    match command {
        TenantCommand::Set(set) => {
            let body = json!({
                "disabled": set.disabled,
                "requests_per_second": set.requests_per_second,
                "tokens_per_minute": set.tokens_per_minute,
                "streams_max": set.streams,
                "stored_bytes_max": set.stored_bytes,
            });
            let tenant: Tenant = client.send(Method::PUT, &["api", "v1", "tenants", &set.tenant], &body).await?;
            output.result(&tenant, || tenants_text(std::slice::from_ref(&tenant)));
        }
        TenantCommand::List => {
            let tenants = all_tenants(&client).await?;
            output.result(&tenants, || tenants_text(&tenants));
        }
        TenantCommand::Usage { tenant } => {
            let usage: Usage = client.get(&["api", "v1", "tenants", &tenant, "usage"]).await?;
            output.result(&usage, || usage_text(&usage));
        }
    }
    Ok(())
}

/// Runs one verb of `susui key`.
pub async fn run_key(global: &Global, command: KeyCommand) -> Result<(), Error> {
    let (client, output) = (global.client()?, global.output());
    match command {
        KeyCommand::Create { name, tenant, scope, ttl } => {
            let ttl_seconds = ttl.map(|ttl| ttl.as_secs());
            let body = json!({"name": name, "tenant": tenant, "scope": scope, "ttl_seconds": ttl_seconds});
            // Once: a repeated call would leave a second key that nobody knows.
            let made: Key = client.post_once(&["api", "v1", "keys"], &body).await?;
            output.note("the key is shown this once:");
            output.result(&made, || made.key.clone().unwrap_or_default());
        }
        KeyCommand::List { tenant } => {
            let keys = all_keys(&client, &tenant).await?;
            output.result(&keys, || keys_text(&keys));
        }
        KeyCommand::Revoke { id } => {
            let key: Key = client.delete(&["api", "v1", "keys", &id]).await?;
            output.result(&key, || format!("key {} ({}) of tenant {} is revoked", key.id, key.name, key.tenant));
        }
    }
    Ok(())
}

/// Runs `susui audit`.
pub async fn run_audit(global: &Global, arguments: &AuditArguments) -> Result<(), Error> {
    let limit = arguments.limit.to_string();
    let audit: Audit = global.client()?.get_query(&["api", "v1", "audit"], &[("limit", &limit)]).await?;
    global.output().result(&audit.calls, || {
        let header = std::iter::once(row(["TIME", "TENANT", "KEY", "STATUS", "ACTION", "TARGET"]));
        let rows = audit.calls.iter().map(|call| {
            let at = std::time::UNIX_EPOCH + Duration::from_millis(call.at_ms);
            let at = humantime::format_rfc3339_seconds(at).to_string();
            let key = call.key_id.as_deref().unwrap_or("-");
            row([&at, &call.tenant, key, &call.status.to_string(), &call.action, &call.target])
        });
        table(&header.chain(rows).collect::<Vec<_>>())
    });
    Ok(())
}

async fn all_tenants(client: &Client) -> Result<Vec<Tenant>, Error> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let query = [("limit", PAGE_ROWS), ("cursor", &cursor)];
        let page: Tenants = client.get_query(&["api", "v1", "tenants"], &query).await?;
        found.extend(page.tenants);
        match page.next_cursor {
            Some(next) => cursor = next,
            None => return Ok(found),
        }
    }
}

async fn all_keys(client: &Client, tenant: &str) -> Result<Vec<Key>, Error> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let query = [("tenant", tenant), ("limit", PAGE_ROWS), ("cursor", &cursor)];
        let page: Keys = client.get_query(&["api", "v1", "keys"], &query).await?;
        found.extend(page.keys);
        match page.next_cursor {
            Some(next) => cursor = next,
            None => return Ok(found),
        }
    }
}

fn tenants_text(tenants: &[Tenant]) -> String {
    let number = |bound: Option<u32>| bound.map_or_else(|| "-".to_owned(), |bound| bound.to_string());
    let header = std::iter::once(row(["TENANT", "STATE", "REQUESTS/S", "TOKENS/MIN", "STREAMS", "STORED", "AT MOST"]));
    let rows = tenants.iter().map(|tenant| {
        row([
            &tenant.tenant,
            if tenant.disabled { "disabled" } else { "active" },
            &number(tenant.requests_per_second),
            &number(tenant.tokens_per_minute),
            &number(tenant.streams_max),
            &bytes(tenant.stored_bytes),
            &tenant.stored_bytes_max.map_or_else(|| "-".to_owned(), bytes),
        ])
    });
    table(&header.chain(rows).collect::<Vec<_>>())
}

fn usage_text(usage: &Usage) -> String {
    let header = std::iter::once(row(["DAY", "MODEL", "ANSWERS", "TOKENS READ", "TOKENS WRITTEN"]));
    let rows = usage.days.iter().map(|day| {
        let date = std::time::UNIX_EPOCH + Duration::from_secs(day.day * 24 * 3600);
        let date = humantime::format_rfc3339_seconds(date).to_string();
        let [requests, prompt, completion] =
            [day.requests, day.prompt_tokens, day.completion_tokens].map(|count| count.to_string());
        row([date.get(..10).unwrap_or(&date), &day.model, &requests, &prompt, &completion])
    });
    let table = table(&header.chain(rows).collect::<Vec<_>>());
    format!("tenant {} stores {}\n{table}", usage.tenant, bytes(usage.stored_bytes))
}

fn keys_text(keys: &[Key]) -> String {
    let header = std::iter::once(row(["ID", "SCOPE", "STATE", "NAME"]));
    let rows = keys.iter().map(|key| row([&key.id, &key.scope, if key.valid { "valid" } else { "ended" }, &key.name]));
    table(&header.chain(rows).collect::<Vec<_>>())
}
