//! The real model: that its vectors mean something, do not depend on company, and rank Cranfield as the reference does.
//!
//! Needs the model's files (`SUSUI_MODEL_DIR`, or where `ops/quickstart` puts them); says so and passes where they are absent.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use coordinator::embed::metrics::EmbedMetrics;
use coordinator::embed::minilm::MiniLm;
use coordinator::embed::{Embedder, Embedding, Purpose};
use coordinator::ingest::chunk;
use coordinator::ingest::parse::Parsed;
use serde::Deserialize;
use serde::de::DeserializeOwned;

fn model() -> Option<&'static MiniLm> {
    static MODEL: OnceLock<Option<MiniLm>> = OnceLock::new();
    MODEL
        .get_or_init(|| {
            let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
            let dir = std::env::var_os("SUSUI_MODEL_DIR")
                .map_or_else(|| home.join(".local/share/susui/models/all-MiniLM-L6-v2"), PathBuf::from);
            if !dir.join("model.safetensors").exists() {
                println!("skipped: no embedding model in {} (set SUSUI_MODEL_DIR)", dir.display());
                return None;
            }
            Some(MiniLm::open(&dir, 1, 32, EmbedMetrics::new()).expect("the files are the ones we know"))
        })
        .as_ref()
}

async fn embed(model: &MiniLm, texts: &[&str]) -> Vec<Embedding> {
    let deadline = Instant::now() + Duration::from_secs(600);
    model.embed(texts.iter().map(|text| (*text).to_owned()).collect(), Purpose::Query, deadline).await.expect("embeds")
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[tokio::test]
async fn a_known_vector_is_reproduced() {
    let Some(model) = model() else { return };
    // First components that sentence-transformers gives for this text; published on the model's page and in many tutorials.
    let vector = &embed(model, &["This is an example sentence"]).await[0];
    for (ours, known) in vector.iter().zip([0.067_656_9, 0.063_495_9, 0.048_713_1, 0.079_304_5, 0.037_448_1]) {
        assert!((ours - known).abs() < 1e-4, "{:?}", &vector[..5]);
    }
}

#[tokio::test]
async fn paraphrases_are_close_and_vectors_do_not_depend_on_company() {
    let Some(model) = model() else { return };
    let long = "The boundary layer grows along the plate until it separates. ".repeat(40);
    let texts = [
        "How do I add a node to the cluster?",
        "Steps for joining another machine to the cluster",
        "The cake should rest for an hour before it is served.",
        &long,
        "",
    ];
    let together = embed(model, &texts).await;
    let paraphrase = cosine(&together[0], &together[1]);
    let unrelated = cosine(&together[0], &together[2]);
    println!("paraphrase {paraphrase:.4}, unrelated {unrelated:.4}");
    assert!(paraphrase > 0.5 && unrelated < 0.1);
    for (text, vector) in texts.iter().zip(&together) {
        assert_eq!(vector.len(), model.dim());
        assert!((cosine(vector, vector) - 1.0).abs() < 1e-4, "unit length");
        let alone = &embed(model, &[text]).await[0];
        assert!(cosine(alone, vector) > 0.9999, "{text:.20}: {}", cosine(alone, vector));
        assert_eq!(alone, &embed(model, &[text]).await[0], "the same work gives the same bits");
    }
}

#[tokio::test]
async fn what_is_beyond_the_limit_is_cut_not_refused() {
    let Some(model) = model() else { return };
    let base = "lift ".repeat(254);
    assert_eq!(model.count_tokens(&base), model.tokens_max());
    let vectors = embed(model, &[&base, &format!("{base} drag drag drag")]).await;
    assert!(cosine(&vectors[0], &vectors[1]) > 0.9999);
    assert!(model.count_tokens(&"x ".repeat(5000)) > 5000);
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "_id")]
    id: String,
    #[serde(default)]
    title: String,
    text: String,
}

fn lines<T: DeserializeOwned>(path: &Path) -> Vec<T> {
    let text = std::fs::read_to_string(path).expect("readable");
    text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect()
}

type Judgements = HashMap<String, HashSet<String>>;

fn judgements(path: &Path) -> Judgements {
    let mut judged = Judgements::new();
    for line in std::fs::read_to_string(path).expect("readable").lines().skip(1) {
        let mut fields = line.split('\t');
        let (query, document) = (fields.next().expect("query"), fields.next().expect("document"));
        judged.entry(query.to_owned()).or_default().insert(document.to_owned());
    }
    judged
}

/// Mean nDCG@10 (binary) and recall@100 over the judged queries. `rank` gives the documents for a query, best first.
fn evaluate(
    queries: &[(String, Embedding)],
    judged: &Judgements,
    rank: impl Fn(&Embedding) -> Vec<String>,
) -> (f64, f64) {
    let (mut ndcg, mut recall, mut count) = (0.0, 0.0, 0.0);
    for (id, vector) in queries {
        let Some(relevant) = judged.get(id) else { continue };
        let ranking = rank(vector);
        let gain = |position: usize| 1.0 / (position as f64 + 2.0).log2();
        let found: f64 =
            ranking.iter().take(10).enumerate().filter(|(_, d)| relevant.contains(*d)).map(|(p, _)| gain(p)).sum();
        let ideal: f64 = (0..relevant.len().min(10)).map(gain).sum();
        ndcg += found / ideal;
        recall += ranking.iter().take(100).filter(|d| relevant.contains(*d)).count() as f64 / relevant.len() as f64;
        count += 1.0;
    }
    (ndcg / count, recall / count)
}

/// Documents by their best vector.
fn by_best(vectors: &[(String, Embedding)], query: &Embedding) -> Vec<String> {
    let mut best: HashMap<&str, f32> = HashMap::new();
    for (document, vector) in vectors {
        let score = cosine(vector, query);
        let entry = best.entry(document).or_insert(f32::MIN);
        *entry = entry.max(score);
    }
    let mut ranked: Vec<(&str, f32)> = best.into_iter().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    ranked.into_iter().map(|(document, _)| document.to_owned()).collect()
}

async fn embed_all(model: &MiniLm, texts: Vec<(String, String)>) -> Vec<(String, Embedding)> {
    let mut embedded = Vec::with_capacity(texts.len());
    for batch in texts.chunks(64) {
        let vectors = embed(model, &batch.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>()).await;
        embedded.extend(batch.iter().map(|(id, _)| id.clone()).zip(vectors));
    }
    embedded
}

/// The whole embedding path against figures measured outside the project, and the same with our chunking.
#[tokio::test]
#[ignore = "embeds 1,400 abstracts twice: about two minutes of one core"]
async fn cranfield_ranks_as_the_reference() {
    let Some(model) = model() else { return };
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Some(data) = workspace.ancestors().map(|dir| dir.join("shared/data/cranfield")).find(|dir| dir.exists()) else {
        println!("skipped: no ../shared/data/cranfield beside the workspace");
        return;
    };
    let corpus: Vec<Document> = lines(&data.join("corpus.jsonl"));
    let judged = judgements(&data.join("qrels.tsv"));
    let queries: Vec<Document> = lines(&data.join("queries.jsonl"));
    let queries = embed_all(model, queries.into_iter().map(|query| (query.id, query.text)).collect()).await;

    let mut whole = Vec::new();
    let mut chunked = Vec::new();
    for document in corpus.into_iter().filter(|document| !document.text.trim().is_empty()) {
        let parsed = Parsed::plain(Some(document.title), document.text);
        let chunks = chunk::chunk(&parsed, model.tokens_max(), &|text| model.count_tokens(text)).expect("short");
        for chunk in &chunks {
            let text = chunk::embedding_text(parsed.title.as_deref(), chunk);
            assert!(model.count_tokens(&text) <= model.tokens_max());
            chunked.push((document.id.clone(), text));
        }
        // One vector per document: all of it, cut by the model.
        let all = chunk::TextChunk { span: 0..parsed.text.len(), heading_path: Vec::new(), text: parsed.text.clone() };
        whole.push((document.id, chunk::embedding_text(parsed.title.as_deref(), &all)));
    }
    println!("{} documents, {} chunks", whole.len(), chunked.len());

    let started = Instant::now();
    let count = whole.len();
    let whole = embed_all(model, whole).await;
    println!("{:.1} abstracts/s on one thread", count as f64 / started.elapsed().as_secs_f64());
    let (ndcg, recall) = evaluate(&queries, &judged, |query| by_best(&whole, query));
    println!("one vector per document: nDCG@10 {ndcg:.4}, recall@100 {recall:.4} (reference 0.3953, 0.7756)");

    let chunked = embed_all(model, chunked).await;
    let (chunked_ndcg, chunked_recall) = evaluate(&queries, &judged, |query| by_best(&chunked, query));
    println!("best chunk per document: nDCG@10 {chunked_ndcg:.4}, recall@100 {chunked_recall:.4}");

    assert!((ndcg - 0.3953).abs() < 0.002 && (recall - 0.7756).abs() < 0.002);
    assert!(chunked_ndcg > 0.390 && chunked_recall > 0.77);
}

/// Milliseconds per text of a batch of eight ten-token queries, and of one alone. Printed, not asserted: it is the machine's.
#[tokio::test]
#[ignore = "a measurement"]
async fn time_of_short_texts() {
    let Some(model) = model() else { return };
    let texts: Vec<String> = (0..8).map(|n| format!("how does the boundary layer number {n} behave")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    println!("{} tokens each", model.count_tokens(texts[0]));
    for size in [1, 8] {
        let mut fastest = f64::MAX;
        for _ in 0..30 {
            let started = Instant::now();
            embed(model, &texts[..size]).await;
            fastest = fastest.min(started.elapsed().as_secs_f64() * 1000.0 / size as f64);
        }
        println!("batch of {size}: {fastest:.2} ms per text (fastest of 30)");
    }
}
