//! `susui shard promote-replica` and `force-promote`.

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ShardName;
use crate::cli::Global;
use crate::error::Error;
use crate::output::{row, table};

/// Arguments of `susui shard force-promote`.
#[derive(Debug, Args)]
pub struct ForceArguments {
    /// The shard.
    #[arg(value_name = "COLLECTION/INDEX")]
    pub shard: ShardName,
    /// The copy to recover from; `susui shard explain` lists the copies.
    #[arg(long, value_name = "N")]
    pub copy: u64,
    /// Really do it, whatever is lost.
    #[arg(long)]
    pub accept_data_loss: bool,
    /// Do it although a member of the in-sync set lives.
    #[arg(long)]
    pub override_live: bool,
    /// Who you are, for the record.
    #[arg(long, value_name = "NAME", env = "USER", default_value = "unknown")]
    pub by: String,
}

/// Answer of `:promote-replica`.
#[derive(Debug, Serialize, Deserialize)]
struct PromotedReplica {
    shard: String,
    copy: u64,
    changed: bool,
}

/// Answer of `:force-promote`.
#[derive(Debug, Serialize, Deserialize)]
struct Outlook {
    shard: String,
    copy: u64,
    done: bool,
    register_version: u64,
    lineage: u64,
    primary_term: u64,
    copies: Vec<CopyOutlook>,
    entries_lost_known: u64,
    in_sync_unknown: u32,
    objection: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CopyOutlook {
    copy: u64,
    node: u64,
    in_sync: bool,
    last_seqno: Option<u64>,
    last_term: Option<u64>,
    condition: String,
    #[serde(default)]
    reason: String,
}

/// Runs `promote-replica`.
pub(super) async fn replica(global: &Global, shard: &ShardName, copy: u64) -> Result<(), Error> {
    let reply: PromotedReplica = shard.post(&global.client()?, "promote-replica", &json!({"copy": copy})).await?;
    global.output().result(&reply, || {
        if reply.changed {
            format!(
                "copy {copy} of {shard} votes now; it is in sync once it has caught up (`susui shard explain {shard}`)"
            )
        } else {
            format!("copy {copy} of {shard} votes already")
        }
    });
    Ok(())
}

/// Runs `force-promote`: looks first in any case, so that what is decided on is what was seen.
pub(super) async fn force(global: &Global, arguments: &ForceArguments) -> Result<(), Error> {
    let ForceArguments { shard, copy, override_live, .. } = arguments;
    let client = global.client()?;
    let mut body = json!({"copy": copy, "override_live": override_live});
    let mut outlook: Outlook = shard.post(&client, "force-promote", &body).await?;
    if arguments.accept_data_loss {
        let version = outlook.register_version;
        let extra = json!({"accept_data_loss": true, "expect_version": version, "by": arguments.by});
        extend(&mut body, extra);
        outlook = shard.post(&client, "force-promote", &body).await?;
    }
    global.output().result(&outlook, || text(shard, &outlook));
    match &outlook.objection {
        Some(objection) if !outlook.done => Err(Error::CheckFailed(format!("it would be refused: {objection}"))),
        _ => Ok(()),
    }
}

fn extend(body: &mut Value, extra: Value) {
    if let (Value::Object(body), Value::Object(extra)) = (body, extra) {
        body.extend(extra);
    }
}

fn text(shard: &ShardName, outlook: &Outlook) -> String {
    let mut rows = vec![row(["COPY", "NODE", "IN-SYNC", "CONDITION", "LOG ENDS AT", ""])];
    for copy in &outlook.copies {
        let note = if copy.copy == outlook.copy { "to be promoted" } else { &copy.reason };
        rows.push(vec![
            copy.copy.to_string(),
            copy.node.to_string(),
            if copy.in_sync { "yes" } else { "no" }.into(),
            copy.condition.clone(),
            copy.last_seqno.map_or_else(|| "unknown".into(), |seqno| seqno.to_string()),
            note.to_owned(),
        ]);
    }
    let loss = match (outlook.entries_lost_known, outlook.in_sync_unknown) {
        (0, 0) => "no other copy was seen to hold more".to_owned(),
        (known, 0) => format!("at least {known} entries that another copy was seen to hold"),
        (known, unknown) => {
            format!("{known} entries as far as was seen; {unknown} in-sync copies were not, and may hold more")
        }
    };
    let copy = outlook.copy;
    let verdict = if outlook.done {
        format!(
            "done: copy {copy} is the primary of {shard} in lineage {}, term {}\nlost: {loss}",
            outlook.lineage, outlook.primary_term
        )
    } else {
        format!(
            "would promote copy {copy} of {shard}; nothing was done\nlost: {loss}\nThe other copies would be deleted and built \
             anew, session tokens of the shard void. Repeat with --accept-data-loss to do it."
        )
    };
    format!("{}\n{verdict}", table(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlook(done: bool, lost: u64, unknown: u32) -> Outlook {
        let copy = |copy, condition: &str, last_seqno| CopyOutlook {
            copy,
            node: copy,
            in_sync: copy == 1,
            last_seqno,
            last_term: last_seqno.map(|_| 1),
            condition: condition.into(),
            reason: String::new(),
        };
        Outlook {
            shard: "1/0".into(),
            copy: 2,
            done,
            register_version: 5,
            lineage: 2,
            primary_term: 4,
            copies: vec![copy(1, "dead", (unknown == 0).then_some(9 + lost)), copy(2, "open", Some(9))],
            entries_lost_known: lost,
            in_sync_unknown: unknown,
            objection: None,
        }
    }

    #[test]
    fn the_loss_is_told_before_and_after() {
        let shard: ShardName = "docs/0".parse().expect("a name");
        let cases = [
            (outlook(false, 0, 0), "no other copy was seen to hold more"),
            (outlook(false, 14, 0), "at least 14 entries"),
            (outlook(false, 0, 1), "1 in-sync copies were not, and may hold more"),
            (outlook(true, 14, 0), "done: copy 2 is the primary of docs/0 in lineage 2"),
        ];
        for (outlook, expected) in cases {
            let text = text(&shard, &outlook);
            assert!(text.contains(expected), "{text}");
            assert_eq!(text.contains("nothing was done"), !outlook.done, "{text}");
        }
    }
}
