//! Bytes that rot: one byte of any file of a stopped copy is flipped, and whoever opens the copy is told, or is answered as if nothing
//! had happened. Nobody is ever answered wrongly.

mod shard_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cluster_config::error::ErrorKind;
use cluster_config::filter::{Condition, FieldValue, Filter, Predicate};
use cluster_config::ids::OperationId;
use cluster_config::operation::Operation;
use cluster_config::search::{ShardAnswer, ShardHit};
use cluster_config::seqno::SeqNo;
use node::pace::Pace;
use node::replication::storage::CopyStorage;
use node::shard::operation::EncodedEntry;
use node::shard::{Shard, ShardDigest, ShardError, ShardOptions, StorageResources, StoredChunk};
use node::vector::Cancel;
use rand::Rng;
use shard_support::*;

const DIM: usize = 16;
const DOCUMENTS: usize = 600;

fn place() -> Place {
    let mut spec = spec(DIM as u32);
    spec.pca_dim = Some(8);
    spec.index.training_floor = 1000;
    Place::new(spec)
}

/// A copy that has everything: documents, replaced and deleted ones, filters, a generation, an index, a tail.
fn fill(shard: &Shard, log: &mut LogWriter) {
    let mut rng = rng(11);
    let write = |log: &mut LogWriter, operations| commit(shard, &[log.entry(operations)]);
    let document = |number: usize, rng: &mut rand::rngs::StdRng| {
        let metadata =
            format!(r#"{{"year": {}, "tag": "t{}", "flag": {}}}"#, number % 7, number % 3, number.is_multiple_of(2));
        Operation::PutDocument {
            key: key(&format!("d{number}")),
            title: format!("title {number}"),
            chunks: vec![chunk(0, &format!("the text of document {number}"), &metadata, &unit_vector(rng, DIM))],
        }
    };
    for start in (0..DOCUMENTS).step_by(50) {
        let operations = (start..start + 50).map(|number| document(number, &mut rng)).collect();
        write(log, operations);
    }
    write(log, (0..20).map(|number| document(number, &mut rng)).collect());
    write(log, (20..40).map(|number| delete(&format!("d{number}"))).collect());
    for piece in shard.train(&Cancel::never()).expect("trains") {
        commit(shard, &[log.entry_of(OperationId(0), vec![piece])]);
    }
    let stats = shard.stats();
    let step = Operation::IndexUpTo { generation: stats.generation, row_end: stats.row_end };
    commit(shard, &[log.entry_of(OperationId(0), vec![step])]);
    write(log, (600..620).map(|number| document(number, &mut rng)).collect());
    shard.keep_floor(shard.state().expect("state").last.seqno).expect("keeps");
}

/// Everything that can be asked of a copy.
#[derive(Debug, PartialEq)]
struct Answers {
    digest: ShardDigest,
    listed: usize,
    chunks: Vec<StoredChunk>,
    hits: Vec<Vec<ShardHit>>,
    entries: Vec<EncodedEntry>,
    operations: Vec<Option<SeqNo>>,
}

fn ask(shard: &Shard) -> Result<Answers, ShardError> {
    let mut rng = rng(12);
    let search = |vector: &[f32], filter: Filter, exact: bool| {
        let mut asked = query(vector, 10);
        asked.filter = filter;
        asked.knobs.exact = exact;
        let ShardAnswer { hits, .. } = shard.search(&asked, &Cancel::never())?;
        Ok::<_, ShardError>(hits)
    };
    let mut hits = Vec::new();
    for number in 0..12i64 {
        let vector = unit_vector(&mut rng, DIM);
        let year = Condition { field: "year".into(), predicate: Predicate::Eq(FieldValue::Integer(number % 7)) };
        let by_year = Filter { must: vec![year], ..Filter::default() };
        hits.push(search(&vector, Filter::default(), true)?);
        hits.push(search(&vector, Filter::default(), false)?);
        hits.push(search(&vector, by_year, true)?);
    }
    let names: Vec<_> = (0..DOCUMENTS + 20).map(|number| key(&format!("d{number}"))).collect();
    let operations = (0..40).map(|number| shard.find_operation(OperationId(1000 + number)));
    Ok(Answers {
        listed: shard.list_documents("default", None, 1000)?.0.len(),
        chunks: shard.fetch_documents(&names, true)?,
        hits,
        entries: shard.read(SeqNo(1), usize::MAX, usize::MAX)?,
        operations: operations.collect::<Result<_, _>>()?,
        digest: shard.digest()?,
    })
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("lists") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            files(&path, found);
        } else if fs::metadata(&path).expect("metadata").len() > 0 {
            found.push(path);
        }
    }
    found.sort();
}

fn kind_of(path: &Path) -> String {
    let name = path.file_name().expect("a name").to_str().expect("text");
    if name.starts_with("LOG") {
        return "LOG".to_owned();
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some(extension) => format!("*.{extension}"),
        None => name.split('-').next().expect("a word").to_owned(),
    }
}

#[derive(Debug, Default)]
struct Seen {
    flips: usize,
    refused: usize,
    found_by_reading: usize,
    unharmed: usize,
}

/// Flips bytes of every file of an image of copy 1, one at a time.
fn rot(place: &Place, image: &Path, expected: &Answers) -> BTreeMap<String, Seen> {
    let mut rng = rng(13);
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    let mut paths = Vec::new();
    files(image, &mut paths);
    for path in paths {
        let relative = path.strip_prefix(image).expect("below the image");
        let length = fs::metadata(&path).expect("metadata").len() as usize;
        let random = (0..3).map(|_| rng.random_range(0..length));
        let places: Vec<usize> = [0, length - 1, length / 2].into_iter().chain(random).collect();
        for at in places {
            let dir = place.dir.path().join("rotten");
            let _ = fs::remove_dir_all(&dir);
            copy_dir(image, &dir);
            let rotten = dir.join(relative);
            let mut bytes = fs::read(&rotten).expect("reads");
            bytes[at] ^= 1 << rng.random_range(0..8);
            fs::write(&rotten, bytes).expect("writes");

            let what = format!("byte {at} of {length} in {}", relative.display());
            let seen = seen.entry(kind_of(&path)).or_default();
            seen.flips += 1;
            // Of its own, so that no block comes from a cache that saw it whole.
            let resources = Arc::new(StorageResources::new(16 << 20, 8 << 20));
            let options = ShardOptions { dir, may_create: false, resources, ..place.options(1) };
            match Shard::open(options) {
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
                    seen.refused += 1;
                }
                Ok(shard) => match ask(&shard) {
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
                        assert!(shard.failure().is_some(), "{what}: {error} did not end the copy's service");
                        seen.found_by_reading += 1;
                    }
                    Ok(answers) => {
                        assert!(answers == *expected, "{what}: other answers than before");
                        seen.unharmed += 1;
                    }
                },
            }
        }
    }
    for (kind, seen) in &seen {
        println!("{kind:>12} {seen:?}");
    }
    seen
}

/// A file kind of which every byte matters and is looked at when the copy is opened.
fn assert_all_refused(seen: &BTreeMap<String, Seen>, kind: &str) {
    let seen = &seen[kind];
    assert!(seen.flips >= 6 && seen.refused == seen.flips, "{kind}: {seen:?}");
}

#[test]
fn a_flipped_byte_of_a_closed_copy_is_never_answered_from() {
    let place = place();
    let mut log = LogWriter::new();
    let shard = place.open(1);
    fill(&shard, &mut log);
    let expected = ask(&shard).expect("answers");
    shard.close().expect("closes");
    drop(shard);
    // Opened once more, so that what the log held is in table files.
    let shard = place.open(1);
    assert!(ask(&shard).expect("answers") == expected);
    shard.close().expect("closes");
    drop(shard);
    let seen = rot(&place, &place.options(1).dir, &expected);
    assert_all_refused(&seen, "MANIFEST");
    assert_all_refused(&seen, "CURRENT");
    let tables = &seen["*.sst"];
    // RocksDB does without a table's properties.
    assert!(tables.flips >= 50 && tables.unharmed * 10 < tables.flips, "{tables:?}");
    assert_eq!(seen["*.f16"].unharmed, seen["*.f16"].flips, "derived, and made anew");
    assert_eq!(seen["*.sums"].unharmed, seen["*.sums"].flips, "derived, and made anew");
}

#[test]
fn a_flipped_byte_of_a_killed_copy_is_never_answered_from() {
    let place = place();
    let mut log = LogWriter::new();
    let shard = place.open(1);
    fill(&shard, &mut log);
    let expected = ask(&shard).expect("answers");
    let image = tempfile::tempdir().expect("temp dir");
    copy_dir(&place.options(1).dir, image.path());
    drop(shard);
    let seen = rot(&place, image.path(), &expected);
    assert_all_refused(&seen, "*.log");
    assert_all_refused(&seen, "MANIFEST");
}

#[test]
fn a_scrub_finds_what_rots_under_an_open_copy() {
    let place = place();
    let mut log = LogWriter::new();
    let shard = place.open(1);
    fill(&shard, &mut log);
    shard.close().expect("closes");
    drop(shard);
    let scratch = place.dir.path().join("scrub");
    let pace = Pace::new(u64::MAX);
    let shard = place.open(1);
    let scrubbed = shard.scrub(&scratch, &pace, &Cancel::never()).expect("all is right");
    assert!(scrubbed.bytes > 100_000, "{scrubbed:?}");
    assert!(!scratch.exists());
    assert!(shard.last_scrub().is_some() && shard.failure().is_none());
    let cancelled = Cancel::never();
    cancelled.cancel();
    assert_eq!(shard.scrub(&scratch, &pace, &cancelled).expect_err("cancelled").kind(), ErrorKind::Cancelled);
    assert!(shard.failure().is_none() && !scratch.exists());

    let mut paths = Vec::new();
    files(&place.options(1).dir, &mut paths);
    let largest = paths
        .iter()
        .filter(|path| kind_of(path) == "*.sst")
        .max_by_key(|path| fs::metadata(path).expect("metadata").len());
    let rotten = largest.expect("has a table");
    let mut bytes = fs::read(rotten).expect("reads");
    let middle = bytes.len() / 3;
    bytes[middle] ^= 1;
    // In place, as a disk would.
    fs::OpenOptions::new()
        .write(true)
        .open(rotten)
        .and_then(|file| std::os::unix::fs::FileExt::write_all_at(&file, &bytes[middle..=middle], middle as u64))
        .expect("writes");
    let found = shard.scrub(&scratch, &pace, &Cancel::never()).expect_err("finds it");
    assert_eq!(found.kind(), ErrorKind::Corrupt, "{found}");
    let name = rotten.file_name().expect("a name").to_str().expect("text");
    assert!(found.to_string().contains(name), "{found} names {name}");
    assert_eq!(ask(&shard).expect_err("ended its service").kind(), ErrorKind::Corrupt);
    assert!(!scratch.exists());
}
