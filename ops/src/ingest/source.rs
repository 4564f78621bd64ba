//! Finds what there is to ingest: walks folders, names documents, and reads JSON lines one at a time.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use cluster_config::limits;

use super::Refusal;
use crate::error::Error;
use crate::jsonl::{self, Record};

/// Extensions of documents the cluster parses.
const DOCUMENT_EXTENSIONS: [&str; 12] =
    ["txt", "md", "markdown", "html", "htm", "csv", "tsv", "pdf", "docx", "xlsx", "pptx", "epub"];
/// Extension of files of JSON lines.
const LINES_EXTENSION: &str = "jsonl";

/// One document to send.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// For reports: a path, or `file:line`.
    pub origin: String,
    /// Its id.
    pub id: String,
    /// Its contents.
    pub body: Body,
}

/// Where a document's text comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// A file, sent as it is and parsed by the cluster.
    File(PathBuf),
    /// A line of JSON.
    Record(Record),
}

/// What was found under the paths given.
#[derive(Debug, Default)]
pub struct Plan {
    files: Vec<PlannedFile>,
    /// Files given by name that are of no known type.
    refused: Vec<Refusal>,
    /// Files in folders that are of other types.
    pub skipped_files: u64,
    /// Documents, counted: files, and lines of JSON.
    pub documents: u64,
}

#[derive(Debug)]
struct PlannedFile {
    path: PathBuf,
    /// Path from the folder given; the id of a document file.
    name: String,
    is_lines: bool,
}

/// Walks the paths and counts the documents. Errors: a path that does not exist or cannot be read.
pub fn plan(paths: &[PathBuf]) -> Result<Plan, Error> {
    let mut plan = Plan::default();
    for path in paths {
        let metadata = fs::metadata(path).map_err(|error| Error::file(path, &error))?;
        let full = fs::canonicalize(path).map_err(|error| Error::file(path, &error))?;
        let name = full.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if metadata.is_dir() {
            plan.add_folder(path, &name)?;
        } else {
            plan.add_named_file(path, name)?;
        }
    }
    Ok(plan)
}

impl Plan {
    fn add_named_file(&mut self, path: &Path, name: String) -> Result<(), Error> {
        if self.add_file(path, name)? {
            return Ok(());
        }
        self.refused.push(Refusal {
            origin: path.display().to_string(),
            reason: format!("not a type that is ingested (.{}, .{LINES_EXTENSION})", DOCUMENT_EXTENSIONS.join(", .")),
        });
        Ok(())
    }

    /// Walks a folder in name order. Links to folders are not followed, so that a loop cannot trap the walk.
    fn add_folder(&mut self, folder: &Path, name: &str) -> Result<(), Error> {
        let entries = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let mut entries = entries.map_err(|error| Error::file(folder, &error))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let entry_name = entry.file_name().to_string_lossy().into_owned();
            if entry_name.starts_with('.') {
                continue;
            }
            let path = entry.path();
            let child = if name.is_empty() { entry_name } else { format!("{name}/{entry_name}") };
            let kind = entry.file_type().map_err(|error| Error::file(&path, &error))?;
            if kind.is_dir() {
                self.add_folder(&path, &child)?;
            } else if !(path.is_file() && self.add_file(&path, child)?) {
                self.skipped_files += 1;
            }
        }
        Ok(())
    }

    /// Returns whether the file is of a known type.
    fn add_file(&mut self, path: &Path, name: String) -> Result<bool, Error> {
        let extension =
            path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default();
        let is_lines = extension == LINES_EXTENSION;
        if !is_lines && !DOCUMENT_EXTENSIONS.contains(&extension.as_str()) {
            return Ok(false);
        }
        self.documents += if is_lines { count_lines(path)? } else { 1 };
        self.files.push(PlannedFile { path: path.to_owned(), name, is_lines });
        Ok(true)
    }

    /// Every document in order, or why it cannot be sent. An id that occurs twice is refused the second time: silently
    /// replacing the first would lose a document.
    pub fn items(self, id_prefix: &str) -> impl Iterator<Item = Result<Item, Refusal>> + use<> {
        let prefix = id_prefix.to_owned();
        let mut seen = HashSet::new();
        let refused = self.refused.into_iter().map(Err);
        let found = self.files.into_iter().flat_map(items_of_file);
        refused.chain(found).map(move |item| {
            let mut item = item?;
            item.id.insert_str(0, &prefix);
            check(&item, &mut seen)?;
            Ok(item)
        })
    }
}

fn items_of_file(file: PlannedFile) -> Box<dyn Iterator<Item = Result<Item, Refusal>> + Send> {
    let origin = file.path.display().to_string();
    if !file.is_lines {
        let item = Item { origin, id: file.name, body: Body::File(file.path) };
        return Box::new(std::iter::once(Ok(item)));
    }
    let input = match File::open(&file.path) {
        Ok(input) => BufReader::new(input),
        Err(error) => return Box::new(std::iter::once(Err(Refusal { origin, reason: error.to_string() }))),
    };
    Box::new(jsonl::records(input).map(move |record| match record {
        Ok((line, record)) => {
            Ok(Item { origin: format!("{origin}:{line}"), id: record.id.clone(), body: Body::Record(record) })
        }
        Err(refused) => Err(Refusal { origin: format!("{origin}:{}", refused.line), reason: refused.reason }),
    }))
}

fn check(item: &Item, seen: &mut HashSet<String>) -> Result<(), Refusal> {
    let refuse = |reason: String| Err(Refusal { origin: item.origin.clone(), reason });
    if item.id.len() > limits::DOCUMENT_ID_BYTES_MAX {
        return refuse(format!(
            "the id has {} bytes, at most {} are allowed",
            item.id.len(),
            limits::DOCUMENT_ID_BYTES_MAX
        ));
    }
    match &item.body {
        Body::Record(record) if record.text.trim().is_empty() => {
            return refuse(format!("document {:?} has no text", item.id));
        }
        Body::Record(record) if record.text.len() > limits::DOCUMENT_BYTES_MAX => {
            return refuse(format!(
                "the text has {} bytes, at most {} are allowed",
                record.text.len(),
                limits::DOCUMENT_BYTES_MAX
            ));
        }
        _ => {}
    }
    if !seen.insert(item.id.clone()) {
        return refuse(format!("document id {:?} occurred before in this run", item.id));
    }
    Ok(())
}

/// Lines that are not blank, for the progress bar.
fn count_lines(path: &Path) -> Result<u64, Error> {
    let failed = |error: std::io::Error| Error::file(path, &error);
    let mut input = BufReader::with_capacity(1 << 20, File::open(path).map_err(failed)?);
    let (mut count, mut in_line) = (0, false);
    loop {
        let bytes = input.fill_buf().map_err(failed)?;
        if bytes.is_empty() {
            return Ok(count + u64::from(in_line));
        }
        for byte in bytes {
            match byte {
                b'\n' => {
                    count += u64::from(in_line);
                    in_line = false;
                }
                byte => in_line |= !byte.is_ascii_whitespace(),
            }
        }
        let length = bytes.len();
        input.consume(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("has one")).expect("creates");
            fs::write(path, text).expect("writes");
        }
        dir
    }

    #[test]
    fn folders_are_walked_in_order_and_ids_are_paths() {
        let dir = tree(&[
            ("docs/b.md", "x"),
            ("docs/a.txt", "x"),
            ("docs/sub/c.HTML", "x"),
            ("docs/d.pdf", "x"),
            ("docs/picture.png", "x"),
            ("docs/.hidden.md", "x"),
            ("docs/.git/d.md", "x"),
        ]);
        let plan = plan(&[dir.path().join("docs")]).expect("walks");
        assert_eq!((plan.documents, plan.skipped_files), (4, 1));
        let ids: Vec<String> = plan.items("v1/").map(|item| item.expect("taken").id).collect();
        assert_eq!(ids, ["v1/docs/a.txt", "v1/docs/b.md", "v1/docs/d.pdf", "v1/docs/sub/c.HTML"]);
    }

    #[test]
    fn the_two_cranfield_warts_are_refused_by_their_line_and_the_rest_goes_on() {
        let lines = [
            r#"{"_id":"1","title":"t","text":"x"}"#,
            r#"{"_id":"471","title":"","text":""}"#,
            "",
            r#"{"_id":"3","text":"y"}"#,
        ];
        let dir = tree(&[("corpus.jsonl", &lines.join("\n"))]);
        let plan = plan(&[dir.path().join("corpus.jsonl")]).expect("reads");
        assert_eq!(plan.documents, 3);
        let (taken, refused): (Vec<_>, Vec<_>) = plan.items("").partition(Result::is_ok);
        assert_eq!(taken.len(), 2);
        let refusal = refused[0].as_ref().expect_err("refused");
        assert!(refusal.origin.ends_with("corpus.jsonl:2"), "{}", refusal.origin);
        assert_eq!(refusal.reason, "document \"471\" has no text");
    }

    #[test]
    fn a_second_document_of_the_same_id_is_refused_not_replaced() {
        let dir = tree(&[
            ("a/x.md", "1"),
            ("b/a/x.md", "2"),
            ("n.jsonl", "{\"id\":1,\"text\":\"a\"}\n{\"id\":\"1\",\"text\":\"b\"}\n"),
        ]);
        let plan = plan(&[dir.path().join("a"), dir.path().join("b/a"), dir.path().join("n.jsonl")]).expect("walks");
        let refused: Vec<_> = plan.items("").filter_map(Result::err).collect();
        assert_eq!(refused.len(), 2);
        assert!(refused.iter().all(|refusal| refusal.reason.contains("occurred before")));
    }

    #[test]
    fn a_file_given_by_name_is_refused_where_a_folder_would_skip_it() {
        let dir = tree(&[("x.png", "PNG"), ("ok.md", "x")]);
        let plan = plan(&[dir.path().join("x.png"), dir.path().join("ok.md")]).expect("walks");
        let (taken, refused): (Vec<_>, Vec<_>) = plan.items("").partition(Result::is_ok);
        assert_eq!((taken.len(), refused.len()), (1, 1));
    }
}
