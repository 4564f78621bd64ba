//! Stories of one core: commands and the actions they cause, as text in `node/testdata/replication/*.txt`.
//!
//! Each file begins with why it exists. A line that begins with `>` is a command, the lines after it are what the core then wants
//! done. `UPDATE_STORIES=1` rewrites the files from what the core does; the difference is then for a person to read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use cluster_config::ids::{CollectionId, CopyId, Incarnation, Lineage, NodeId, OperationId, ShardId};
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};
use cluster_config::shard_group::{CopyPhase, CopyRecord, CopyRole, PrimaryGrant, ShardGroup};

use super::core::{Core, CoreOptions, Timing};
use super::messages::{
    Action, Append, AppendOutcome, AppendRefusal, AppendResult, Event, ProposalOutcome, RequestId, WriteRefusal,
};
use super::retention::Retention;
use super::storage::{EncodedEntry, StorageError, StoredState};

const SHARD: ShardId = ShardId { collection: CollectionId(1), index: 0 };

/// The words of a command after its name: bare ones in order, and `key=value`.
struct Words<'a> {
    bare: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn new(line: &'a str) -> Self {
        let mut words = Self { bare: Vec::new(), named: BTreeMap::new() };
        for word in line.split_whitespace() {
            match word.split_once('=') {
                Some((key, value)) => drop(words.named.insert(key, value)),
                None => words.bare.push(word),
            }
        }
        words
    }

    fn number(&self, at: usize) -> u64 {
        self.bare[at].trim_start_matches('#').parse().unwrap_or_else(|_| panic!("{:?} is no number", self.bare[at]))
    }

    fn get(&self, key: &str) -> u64 {
        self.named.get(key).map_or(0, |value| value.parse().unwrap_or_else(|_| panic!("{key}={value} is no number")))
    }

    fn list(&self, key: &str) -> Vec<&'a str> {
        self.named.get(key).map_or(Vec::new(), |value| value.split(',').filter(|item| !item.is_empty()).collect())
    }

    fn ids(&self, key: &str) -> Vec<CopyId> {
        self.list(key).into_iter().map(|id| CopyId(id.parse().expect("a copy id"))).collect()
    }

    /// `seqno:term`.
    fn position(&self, key: &str) -> LogPosition {
        self.named.get(key).map_or(LogPosition::default(), |value| {
            let [seqno, term, _] = numbers(value);
            LogPosition { term: PrimaryTerm(term), seqno: SeqNo(seqno) }
        })
    }

    /// `seqno:term[:operation]`, several.
    fn entries(&self, key: &str) -> Vec<EncodedEntry> {
        let entry = |text| {
            let [seqno, term, operation] = numbers(text);
            EncodedEntry::seal(SeqNo(seqno), PrimaryTerm(term), OperationId(operation.into()), Bytes::new())
        };
        self.list(key).into_iter().map(entry).collect()
    }

    /// `v= term= primary=COPY[@INCARNATION] in_sync= out= readers= min=`; every copy `n` lives on node `n`.
    fn group(&self) -> ShardGroup {
        let in_sync = self.ids("in_sync");
        let mut copies = BTreeMap::new();
        let mut add = |ids: &[CopyId], role, phase| {
            copies.extend(ids.iter().map(|copy| (*copy, CopyRecord { node: NodeId(copy.0), role, phase })));
        };
        add(&in_sync, CopyRole::Voter, CopyPhase::InSync);
        add(&self.ids("out"), CopyRole::Voter, CopyPhase::CatchingUp);
        add(&self.ids("readers"), CopyRole::ReadReplica, CopyPhase::InSync);
        let primary = self.named.get("primary").map(|text| {
            let (copy, incarnation) = text.split_once('@').unwrap_or((text, "1"));
            let number = |text: &str| text.parse().expect("a number");
            PrimaryGrant { copy: CopyId(number(copy)), incarnation: Incarnation(number(incarnation)) }
        });
        ShardGroup {
            shard: SHARD,
            version: self.get("v"),
            primary_term: PrimaryTerm(self.get("term")),
            primary,
            in_sync: in_sync.into_iter().collect(),
            copies,
            lineage: Lineage(0),
            min_in_sync: self.get("min").max(1) as u32,
        }
    }
}

fn numbers(text: &str) -> [u64; 3] {
    let mut numbers = [0; 3];
    for (slot, part) in numbers.iter_mut().zip(text.split(':')) {
        *slot = part.parse().unwrap_or_else(|_| panic!("{text:?} is not made of numbers"));
    }
    numbers
}

/// `open copy= term= log= applied= incarnation= purged= keep=`; `keep` is the size of the log in bytes that always stays, and of which 64
/// times as much waits for others. An entry without payload counts as 48 bytes.
fn open(words: &Words<'_>) -> Core {
    let log = words.entries("log");
    let purged = words.position("purged");
    let last = log.last().map_or(purged, |entry| LogPosition { term: entry.term, seqno: entry.seqno });
    let applied = SeqNo(words.get("applied").max(purged.seqno.0));
    let term_of = |seqno| log.iter().find(|entry| entry.seqno == seqno).map_or(purged.term, |entry| entry.term);
    let mut term_starts: Vec<(SeqNo, PrimaryTerm)> = Vec::new();
    for entry in &log {
        if term_starts.last().is_none_or(|(_, term)| *term != entry.term) {
            term_starts.push((entry.seqno, entry.term));
        }
    }
    let unapplied =
        log.iter().filter(|entry| entry.seqno > applied).map(|entry| (entry.seqno, entry.operation_id)).collect();
    let keep = words.get("keep");
    let small = Retention { bytes_min: keep, bytes_max: 64 * keep, ..Retention::default() };
    Core::new(CoreOptions {
        incarnation: Incarnation(words.get("incarnation").max(1)),
        timing: Timing::default(),
        retention: if keep > 0 { small } else { Retention::default() },
        stored: StoredState {
            copy: CopyId(words.get("copy").max(1)),
            shard: SHARD,
            lineage: Lineage(0),
            current_term: PrimaryTerm(words.get("term")),
            purged,
            last,
            applied: LogPosition { term: term_of(applied), seqno: applied },
            floor: SeqNo::ZERO,
            log_bytes: 48 * log.len() as u64,
        },
        term_starts,
        unapplied,
        barrier_payload: Bytes::new(),
    })
}

fn result(words: &Words<'_>, core: &Core, outcome: AppendOutcome) -> Event {
    let term = if words.named.contains_key("term") { PrimaryTerm(words.get("term")) } else { core.confirmed_term() };
    let incarnation = Incarnation(words.get("incarnation").max(1));
    let copy = CopyId(words.number(0));
    let pinned = words.named.contains_key("pinned").then(|| SeqNo(words.get("pinned")));
    let result = AppendResult { copy, incarnation, term, applied: SeqNo(0), pinned, outcome };
    Event::AppendReplied { append_id: words.number(1), result }
}

fn event(command: &str, words: &Words<'_>, core: &Core) -> Event {
    let refused = |refusal| result(words, core, AppendOutcome::Refused(refusal));
    match command {
        "tick" => Event::Tick(words.number(0)),
        "learn" => Event::Reconfigured(Arc::new(words.group())),
        "write" => Event::Write {
            request: RequestId(words.number(0)),
            operation_id: OperationId(words.get("operation").into()),
            payload: Bytes::new(),
        },
        "looked-up" => Event::OperationLookedUp {
            operation_id: OperationId(words.get("operation").into()),
            term: PrimaryTerm(words.get("term")),
            seqno: words.named.contains_key("at").then(|| SeqNo(words.get("at"))),
        },
        "append" => Event::AppendReceived {
            request: RequestId(words.number(0)),
            append: Append {
                shard: SHARD,
                to_copy: if words.named.contains_key("to") { CopyId(words.get("to")) } else { core.copy() },
                from_copy: CopyId(words.get("from")),
                lineage: Lineage(words.get("lineage")),
                term: PrimaryTerm(words.get("term")),
                cfg_version: 1,
                prev: words.position("prev"),
                entries: words.entries("entries"),
                global_checkpoint: SeqNo(words.get("checkpoint")),
                log_start: SeqNo(words.get("log_start")),
                age_ms: words.get("age"),
            },
        },
        "match" => result(words, core, AppendOutcome::Match(SeqNo(words.number(2)))),
        "mismatch" => refused(AppendRefusal::Mismatch { hint: words.position("hint") }),
        "stale" => refused(AppendRefusal::StaleTerm),
        "busy" => refused(AppendRefusal::Busy),
        "corrupt" => refused(AppendRefusal::Corrupt),
        "lacks" => refused(AppendRefusal::NeedsSnapshot),
        "no-answer" => Event::AppendFailed { to: CopyId(words.number(0)), append_id: words.number(1) },
        "persisted" => Event::Persisted(words.number(0)),
        "applied" => Event::Applied(SeqNo(words.number(0))),
        "disk-fails" => Event::StorageFailed(StorageError::Io("simulated".into())),
        "decided" => {
            let accepted = words.bare[1] == "yes";
            let outcome = ProposalOutcome { accepted, reason: String::new(), register: words.group() };
            Event::ProposalAnswered { id: words.number(0), outcome: Some(outcome) }
        }
        "undecided" => Event::ProposalAnswered { id: words.number(0), outcome: None },
        "read" if words.bare.first() == Some(&"nothing") => Event::RegisterRead(None),
        "read" => Event::RegisterRead(Some(Arc::new(words.group()))),
        "strong-read" => Event::StrongRead { request: RequestId(words.number(0)) },
        "confirmed" => Event::ConfirmReplied {
            round: words.number(1),
            copy: CopyId(words.number(0)),
            term: PrimaryTerm(words.get("term")),
        },
        "unconfirmed" => Event::ConfirmFailed { round: words.number(1), copy: CopyId(words.number(0)) },
        "hand-off" => Event::HandOff {
            request: RequestId(words.number(0)),
            to: CopyId(words.get("to")),
            patience_ms: words.get("patience"),
        },
        "pin" => Event::PinLog { from: SeqNo(words.number(0)), for_ms: words.get("for") },
        other => panic!("unknown command {other:?}"),
    }
}

fn at(position: LogPosition) -> String {
    format!("{}:{}", position.seqno, position.term)
}

fn told(action: &Action) -> String {
    match action {
        Action::Persist { write_id, write } => {
            let mut line = format!("persist #{write_id}");
            line += &write.term.map_or(String::new(), |term| format!(" term={term}"));
            line += &write.truncate_from.map_or(String::new(), |cut| format!(" cut={cut}"));
            let entry = |entry: &EncodedEntry| format!("{}:{}:{}", entry.seqno, entry.term, entry.operation_id.0);
            if !write.entries.is_empty() {
                let entries: Vec<String> = write.entries.iter().map(entry).collect();
                line += &format!(" entries={}", entries.join(","));
            }
            line
        }
        Action::SendAppend(send) => {
            let (to, id, term, prev) = (send.to, send.append_id, send.term, at(send.prev));
            let (up_to, checkpoint) = (send.up_to, send.global_checkpoint);
            let start =
                if send.log_start == SeqNo(1) { String::new() } else { format!(" log_start={}", send.log_start) };
            format!("send to {to} #{id} term={term} prev={prev} up_to={up_to} checkpoint={checkpoint}{start}")
        }
        Action::ReplyAppend { request, result } => {
            let outcome = match result.outcome {
                AppendOutcome::Match(seqno) => format!("match {seqno}"),
                AppendOutcome::Refused(AppendRefusal::Mismatch { hint }) => format!("mismatch hint={}", at(hint)),
                AppendOutcome::Refused(refusal) => format!("{refusal:?}"),
            };
            let pinned = result.pinned.map_or(String::new(), |from| format!(" pinned={from}"));
            format!("reply {} term={} {outcome}{pinned}", request.0, result.term)
        }
        Action::ApplyUpTo(seqno) => format!("apply up to {seqno}"),
        Action::FindOperation { operation_id, term } => format!("look up operation={} term={term}", operation_id.0),
        Action::AckWrite { request, ack } => {
            let retry = if ack.deduplicated { ", a retry" } else { "" };
            format!("acknowledge {} at {} on {} copies{retry}", request.0, ack.seqno, ack.copies_acked)
        }
        Action::RefuseWrite { request, refusal } => match refusal {
            WriteRefusal::NotEnoughCopies { in_sync, min_in_sync } => {
                format!("refuse {}: {in_sync} in sync, {min_in_sync} needed", request.0)
            }
            refusal => format!("refuse {}: {refusal:?}", request.0),
        },
        Action::Propose(proposal) => {
            format!(
                "propose #{} {:?} version={} term={}",
                proposal.id, proposal.change, proposal.expect_version, proposal.term
            )
        }
        Action::ReadRegister => "read register".into(),
        Action::Purge(up_to) => format!("purge up to {up_to}"),
        Action::SendConfirm(send) => format!("ask {} whether it follows term={} #{}", send.to, send.term, send.round),
        Action::ServeRead { request, seqno } => format!("serve read {} at {seqno}", request.0),
        Action::RefuseRead { request, refusal } => format!("refuse read {}: {refusal:?}", request.0),
        Action::EndHandOff { request, result: Ok(()) } => format!("hand-off {}: done", request.0),
        Action::EndHandOff { request, result: Err(refusal) } => format!("hand-off {}: {refusal:?}", request.0),
    }
}

fn state(core: &Core) -> String {
    let role = match core.poisoned() {
        Some(_) => "poisoned",
        None if core.is_primary() => "primary",
        None => "follower",
    };
    let lacks = if core.needs_snapshot() { " needs_snapshot" } else { "" };
    format!(
        "{role} term={} last={} local={} global={} applied={} needing_snapshot={:?}{lacks}",
        core.confirmed_term(),
        at(core.last()),
        core.local_checkpoint(),
        core.global_checkpoint(),
        core.applied(),
        core.needing_snapshot().iter().map(|copy| copy.0).collect::<Vec<_>>()
    )
}

/// Runs the commands of a story and writes down what happens.
fn tell(story: &str) -> String {
    let mut told_story = String::new();
    let mut core: Option<Core> = None;
    for line in story.lines() {
        let Some(command) = line.strip_prefix("> ") else {
            if line.is_empty() || line.starts_with('#') {
                told_story += &format!("{line}\n");
            }
            continue;
        };
        told_story += &format!("{line}\n");
        let (name, rest) = command.split_once(' ').unwrap_or((command, ""));
        let words = Words::new(rest);
        if name == "open" {
            core = Some(open(&words));
            continue;
        }
        let core = core.as_mut().expect("a story begins with open");
        if name == "state" {
            told_story += &format!("{}\n", state(core));
            continue;
        }
        if name == "age" {
            told_story += &format!("current as of {:?}\n", core.current_as_of_ms());
            continue;
        }
        let event = event(name, &words, core);
        core.step(event).iter().for_each(|action| told_story += &format!("{}\n", told(action)));
        core.check().unwrap_or_else(|broken| panic!("after {line:?}: {broken}"));
    }
    told_story
}

fn stories() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/replication");
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("readable").path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_story_is_told_as_written() {
    let paths = stories();
    assert!(paths.len() >= 10, "only {} stories found", paths.len());
    for path in paths {
        let written = std::fs::read_to_string(&path).expect("readable");
        let told = tell(&written);
        if std::env::var_os("UPDATE_STORIES").is_some() {
            std::fs::write(&path, &told).expect("writable");
            continue;
        }
        assert!(told == written, "{} is told differently now:\n{told}", path.display());
    }
}
