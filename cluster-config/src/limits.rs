//! Every upper bound of the system, by name. A bound that is not here does not exist; relations between them are asserted
//! at compile time.

use std::time::Duration;

use crate::units::ByteSize;

/// Longest collection name. Names appear in metric labels and paths.
pub const COLLECTION_NAME_BYTES_MAX: usize = 64;
/// Longest tenant name.
pub const TENANT_BYTES_MAX: usize = 128;
/// Longest document id.
pub const DOCUMENT_ID_BYTES_MAX: usize = 512;
/// Widest vector. 4096 covers the open embedding models of today.
pub const DIM_MAX: u32 = 4096;
/// Most shards of a collection.
pub const SHARDS_MAX: u32 = 1024;
/// Most voting copies of a shard.
pub const COPIES_MAX: u32 = 7;
/// Most read replicas of a shard.
pub const READ_REPLICAS_MAX: u32 = 7;
/// Most collections of a cluster.
pub const COLLECTIONS_MAX: usize = 1000;
/// Most nodes of a cluster.
pub const NODES_MAX: usize = 1000;
/// Most metadata fields declared by a collection.
pub const FIELDS_MAX: usize = 64;
/// Longest field name.
pub const FIELD_NAME_BYTES_MAX: usize = 64;
/// Most bytes of one chunk's text.
pub const CHUNK_TEXT_BYTES_MAX: usize = 64 * 1024;
/// Most bytes of one chunk's metadata, as JSON.
pub const METADATA_BYTES_MAX: usize = 16 * 1024;
/// Most chunks of one document.
pub const CHUNKS_PER_DOCUMENT_MAX: usize = 10_000;
/// Most bytes of an uploaded document.
pub const DOCUMENT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most entries of a zip package (Office files, EPUB).
pub const PACKAGE_ENTRIES_MAX: usize = 10_000;
/// Most bytes that a zip package may unpack to, over all entries that are read.
pub const PACKAGE_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Most pages or slides of a document.
pub const PAGES_MAX: usize = 10_000;
/// Most bytes of a JSON request body.
pub const JSON_BODY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most points of one `PUT .../points`.
pub const POINTS_PER_BATCH_MAX: usize = 10_000;
/// Most ids of one `POST .../points:delete`.
pub const DELETES_PER_BATCH_MAX: usize = 10_000;
/// Documents that one deletion holds locked at a time: a Postgres as installed has room for 6,400 locks of all its sessions.
pub const DOCUMENTS_LOCKED_MAX: usize = 256;
/// Deletions, writes of points and administrative calls that a coordinator has under way, those whose clients have gone included, before
/// `Overloaded`: as many as one primary queues.
pub const EDITS_AT_ONCE_MAX: usize = WRITE_QUEUE_MAX;
/// Most operations of one write to a shard.
pub const OPS_PER_WRITE_MAX: usize = 1000;
/// Most bytes of one write to a shard, encoded.
pub const WRITE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most bytes of one log entry, encoded: the largest document a shard takes in one piece.
pub const ENTRY_BYTES_MAX: usize = 48 * 1024 * 1024;
/// Most bytes of one `Append` request between copies. One entry above it travels alone.
pub const APPEND_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most entries of one `Append` request.
pub const APPEND_ENTRIES_MAX: usize = 4096;
/// Most bytes of any gRPC message between nodes.
pub const GRPC_MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes that a peer may send ahead on a stream, and on a connection: large enough that a batch of searches or vectors does not wait for
/// window updates.
pub const GRPC_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Bytes of one piece of a model generation, as logged.
pub const GENERATION_PIECE_BYTES: usize = 1024 * 1024;
/// Most bytes of a whole model generation (PCA, centroids, codebooks).
pub const GENERATION_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Rows added to the index by one `IndexUpTo`, so that applying it is a bounded pause.
pub const INDEX_STEP_ROWS_MAX: u64 = 16_384;
/// Most vectors a model generation is trained on. FAISS' k-means looks at no more than 256 vectors a centroid and wants 39,
/// so this serves up to 1,680 lists; further rows would cost time and teach little.
pub const TRAINING_ROWS_MAX: usize = 65_536;
/// Most bytes of the vectors (f32) a model generation is trained on: wide ones are sampled thinner.
pub const TRAINING_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Memory of one training unless configured otherwise: the sample, and twice as much made of it. What FAISS works with comes on top: 16 MiB
/// of distances, 16 bytes for each pair of dimensions where there is a projection.
pub const TRAINING_MEMORY_DEFAULT: ByteSize = ByteSize(3 * TRAINING_BYTES_MAX as u64);
/// Least memory of one training: the widest vectors still make a sample of a thousand.
pub const TRAINING_MEMORY_MIN: ByteSize = ByteSize(48 * 1024 * 1024);
/// Most: more would not be used.
pub const TRAINING_MEMORY_MAX: ByteSize = TRAINING_MEMORY_DEFAULT;
/// Most measured efforts of an index that are logged: ten shares of the lists and seven depths are 70.
pub const EFFORT_RUNGS_MAX: usize = 256;
/// Most rows compared exactly to measure what each effort finds: seconds of one core, in idle time.
pub const EFFORT_ROWS_COMPARED_MAX: u64 = 100_000_000;
/// Bytes of one checksummed piece of a stored index.
pub const INDEX_PIECE_BYTES: usize = 1024 * 1024;
/// Most results of a search.
pub const TOP_K_MAX: u32 = 1000;
/// Most candidates re-scored exactly per shard.
pub const RESCORE_MAX: u32 = 20_000;
/// Largest `oversample`.
pub const OVERSAMPLE_MAX: f32 = 100.0;
/// Most searches of one `search:batch`.
pub const SEARCHES_PER_BATCH_MAX: usize = 256;
/// Most results of all searches of one `search:batch` together.
pub const RESULTS_PER_BATCH_MAX: u64 = 10_000;
/// Most bytes of a query text.
pub const QUERY_BYTES_MAX: usize = 16 * 1024;
/// Most conditions of a filter, over all its clauses.
pub const FILTER_CONDITIONS_MAX: usize = 64;
/// Most values of one `in` condition.
pub const FILTER_VALUES_MAX: usize = 1024;
/// Operation ids remembered per shard, newest first.
pub const DEDUP_WINDOW: u64 = 200_000;
/// Longest request a client may ask for, milliseconds.
pub const TIMEOUT_MS_MAX: u64 = 120_000;
/// Request deadline where the client names none, milliseconds.
pub const TIMEOUT_MS_DEFAULT: u64 = 10_000;
/// Writes queued at one primary before `Overloaded`.
pub const WRITE_QUEUE_MAX: usize = 1024;
/// Most bytes of payload in flight at one primary before `Overloaded`, unless a single write is larger.
pub const WRITE_QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most bytes of recent log entries a copy keeps in memory besides those in flight, so that peers and apply rarely read the disk.
pub const RECENT_ENTRIES_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of the newest log entries that a copy keeps although nobody needs them, unless configured otherwise: a copy of a small shard that
/// is built anew then catches up from the log alone.
pub const LOG_KEPT_BYTES_MIN: u64 = 32 * 1024 * 1024;
/// Bytes of log beyond which a primary does not wait for copies that are not in sync, unless configured otherwise.
pub const LOG_KEPT_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Age of log entries beyond which a primary does not wait for copies that are not in sync, unless configured otherwise.
pub const LOG_KEPT_AGE_MAX: Duration = Duration::from_secs(12 * 3600);
/// Longest age of log entries that may be configured.
pub const LOG_KEPT_AGE_CONFIGURED_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// Snapshots on their way for which one copy holds its log back.
pub const LOG_PINS_MAX: usize = 16;
/// Longest a log is held back for a snapshot without being asked again.
pub const LOG_PIN_MAX: Duration = Duration::from_secs(600);
/// Strong reads waiting at one primary before `Overloaded`.
pub const STRONG_READS_MAX: usize = 4096;
/// Primary roles that a leaving node hands off at a time: each stops one shard's writes for a moment.
pub const HAND_OFFS_MAX: usize = 4;
/// Longest a write waits at a primary that is handing off before `Overloaded`.
pub const HAND_OFF_HOLD: Duration = Duration::from_secs(1);
/// Longest a session read waits for its position at one copy before another is to be asked.
pub const SESSION_WAIT_MAX: Duration = Duration::from_millis(200);
/// Entries a copy may lack and still be counted towards acknowledgements on its way into the in-sync set.
pub const TRACKING_LAG_ENTRIES_MAX: u64 = 1000;
/// Answers to its primary that one copy holds back until its disk has caught up; one is usual.
pub const APPENDS_WAITING_MAX: usize = 16;
/// Messages queued at one copy's task.
pub const COPY_MAILBOX_MAX: usize = 4096;
/// Searches queued for a node's search pool before `Overloaded`.
pub const SEARCH_QUEUE_MAX: usize = 1024;
/// Texts waiting for the embedding model before `Overloaded`: at 5 ms each on one core, ten seconds of work.
pub const EMBED_QUEUE_MAX: usize = 2048;
/// Most texts of one call to the embedder; callers with more send several.
pub const EMBED_TEXTS_MAX: usize = 1024;
/// Most bytes of one embedded text that reach the tokenizer; the model reads 256 tokens, words of it are rarely above 20 bytes.
pub const EMBED_TEXT_BYTES_MAX: usize = 64 * 1024;
/// Calls of the doors whose texts are being counted in tokens at one time; others wait. Counting takes a core each.
pub const TOKEN_COUNTS_AT_ONCE_MAX: usize = 2;
/// Most bytes of one line or event of a language model's stream.
pub const LLM_FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Most bytes of a conversation that is passed on to a language model: of the widest context, eight bytes a token.
pub const LLM_CONVERSATION_BYTES_MAX: usize = 1024 * 1024;
/// Most bytes of an answer; a backend that goes on is broken.
pub const LLM_ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Most requests waiting for a language model permit before `Overloaded`.
pub const LLM_QUEUE_MAX: usize = 256;
/// Most sources offered to one prompt.
pub const SOURCES_MAX: usize = 64;
/// Deepest heading path kept.
pub const HEADING_DEPTH_MAX: usize = 6;
/// Most bytes of a title or of one heading.
pub const TITLE_BYTES_MAX: usize = 512;
/// Most bytes of a session token: the longest entries (75 bytes) of every shard of the largest collection.
pub const SESSION_BYTES_MAX: usize = 96 * 1024;
/// Answer times of a shard that a coordinator remembers: six of them are slower than the p95.
pub const LATENCY_SAMPLES_MAX: usize = 128;
/// Requests a coordinator answers at one time before `Overloaded`; streams count until they end.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 4096;
/// Rows of one page of a listing.
pub const PAGE_ROWS_MAX: u32 = 1000;
/// Rows of a page where the caller names no number.
pub const PAGE_ROWS_DEFAULT: u32 = 100;
/// Longest name of a language model in a request.
pub const MODEL_BYTES_MAX: usize = 256;
/// Writes of the metadata log that wait for one sync.
pub const METADATA_FLUSH_QUEUE_MAX: usize = 1024;
/// Most bytes of log entries in one message between metadata voters.
pub const METADATA_APPEND_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most agreed commands applied and stored in one write.
pub const METADATA_APPLY_BATCH_MAX: usize = 256;
/// Most bytes of a metadata snapshot; 100,000 shards take about 20 MiB.
pub const METADATA_SNAPSHOT_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Bytes of one piece of a metadata snapshot on the wire.
pub const METADATA_SNAPSHOT_PIECE_BYTES: usize = 1024 * 1024;
/// Most shards that one reconfiguration changes; further ones follow in the next.
pub const RECONFIGURE_SHARDS_MAX: usize = 4096;
/// Forced recoveries remembered in the metadata state.
pub const AUDIT_RECORDS_MAX: usize = 64;
/// Copies that may be on their way to replace lost ones at a time.
pub const REPLACEMENTS_MAX: usize = 20;
/// Most bytes of an error's message, and of its hint, as sent: they travel in HTTP/2 headers of at most 16 KiB, percent-encoded.
pub const ERROR_TEXT_BYTES_MAX: usize = 1024;
/// Longest word an operator gives: cluster, zone, backend, own name.
pub const WORD_BYTES_MAX: usize = 64;
/// Bytes of one piece of a shard snapshot, as checksummed and sent.
pub const SNAPSHOT_PIECE_BYTES: usize = 1024 * 1024;
/// Most files of a shard snapshot: table files of 64 MiB, so far more than a disk holds.
pub const SNAPSHOT_FILES_MAX: usize = 100_000;
/// Snapshots that other nodes may fetch from one at a time.
pub const TRANSFERS_OUT_MAX: usize = 2;
/// Snapshots that a node fetches at a time.
pub const TRANSFERS_IN_MAX: usize = 2;
/// Bytes per second of all snapshots that a node sends: a third of a gigabit link.
pub const TRANSFER_BYTES_PER_SECOND: u64 = 40 * 1024 * 1024;
/// A snapshot that nobody has read from for this long is given up.
pub const SNAPSHOT_LEASE: Duration = Duration::from_secs(600);
/// Pause after the first failed attempt to fetch a snapshot; each further one doubles it.
pub const TRANSFER_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest such pause.
pub const TRANSFER_PAUSE_MAX: Duration = Duration::from_secs(300);
/// Bytes per second read to look for rotten bytes, over all copies of a node.
pub const SCRUB_BYTES_PER_SECOND: u64 = 16 * 1024 * 1024;
/// Each copy is looked through this often, unless configured otherwise.
pub const SCRUB_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Longest such interval that may be configured.
pub const SCRUB_INTERVAL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// Share of the disk in use, in percent, at which client writes are refused, unless configured otherwise: what is left is for
/// compaction, for deletes, and for the entries of other primaries.
pub const DISK_FULL_PERCENT: u8 = 95;
/// Sizes of the metadata group.
pub const VOTER_COUNTS: [usize; 3] = [1, 3, 5];
/// Largest weight of a node: a hundred shares. Bounds the hash ring.
pub const NODE_WEIGHT_MAX: u32 = 10_000;
/// Most threads of any one pool.
pub const THREADS_MAX: usize = 1024;
/// Copies hear from their primary, and a primary from its copies, every 300 ms, so that none knows for certain to be much fresher: who asks
/// for less is answered by a strong read.
pub const STALENESS_KNOWN: Duration = Duration::from_secs(1);
/// Shortest interval or timeout that may be configured: timers tick in milliseconds.
pub const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Longest interval or timeout that may be configured.
pub const INTERVAL_MAX: Duration = Duration::from_secs(600);
/// Longest a cached answer may live, whatever else would keep it.
pub const CACHE_TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Most servers named as the way into a Redis Cluster.
pub const REDIS_URLS_MAX: usize = 16;
/// Shortest wait for Redis that may be configured: timers tick in milliseconds.
pub const REDIS_TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// Longest wait for Redis in the way of a request that may be configured: beyond it the cache costs more than it saves.
pub const REDIS_TIMEOUT_MAX: Duration = Duration::from_millis(1000);
/// Most bytes of one value in Redis; larger results are cached in memory only.
pub const REDIS_VALUE_BYTES_MAX: usize = 1024 * 1024;
/// Writes to Redis that wait; further ones are dropped, for a cache may forget.
pub const REDIS_WRITES_MAX: usize = 1024;
/// Most bytes of values that wait to be written to Redis.
pub const REDIS_WRITE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most connections of the catalog's pool, overflow included.
pub const POOL_CONNECTIONS_MAX: u32 = 1000;
/// Most LLM backends of a coordinator.
pub const LLM_BACKENDS_MAX: usize = 64;
/// Most requests a single LLM backend may be given at once.
pub const LLM_CONCURRENCY_MAX: usize = 1024;
/// Largest priority number of an LLM backend.
pub const LLM_PRIORITY_MAX: u32 = 100;
/// Most models that stand in for one.
pub const LLM_FALLBACKS_MAX: usize = 8;
/// Tokens of prompt and answer that a model is taken to have room for: below, no source fits; above, the estimate of a prompt's
/// length says nothing.
pub const LLM_CONTEXT_TOKENS_MIN: usize = 1024;
/// As [`LLM_CONTEXT_TOKENS_MIN`].
pub const LLM_CONTEXT_TOKENS_MAX: usize = 131_072;
/// Most tokens an answer may be asked to have.
pub const LLM_TOKENS_MAX: u32 = 32_768;
/// Most texts of one embedding batch.
pub const EMBED_BATCH_MAX: usize = 1024;
/// Most embeddings cached by a coordinator.
pub const EMBED_CACHE_ENTRIES_MAX: u64 = 10_000_000;
/// Most documents a coordinator ingests at once.
pub const INGEST_WORKERS_MAX: usize = 256;

/// Tenants whose use a coordinator counts at one time; one that was forgotten begins with full allowances.
pub const TENANTS_METERED_MAX: u64 = 100_000;
/// API keys a coordinator remembers, unknown ones included.
pub const KEYS_REMEMBERED_MAX: u64 = 100_000;
/// Sums of usage (tenant, day, model) that wait to be stored; further models are counted as one.
pub const USAGE_ROWS_PENDING_MAX: usize = 10_000;
/// Aliases of collections.
pub const ALIASES_MAX: usize = 1000;
/// Longest name of an API key.
pub const KEY_NAME_BYTES_MAX: usize = 128;
/// Longest path kept in the audit log.
pub const AUDIT_TARGET_BYTES_MAX: usize = 512;

const _: () = {
    assert!(METADATA_APPEND_BYTES_MAX < GRPC_MESSAGE_BYTES_MAX);
    assert!(WRITE_BYTES_MAX < ENTRY_BYTES_MAX);
    assert!(ENTRY_BYTES_MAX < GRPC_MESSAGE_BYTES_MAX);
    assert!(APPEND_BYTES_MAX + GENERATION_PIECE_BYTES < GRPC_MESSAGE_BYTES_MAX);
    assert!(WRITE_BYTES_MAX < WRITE_QUEUE_BYTES_MAX);
    assert!(DOCUMENT_BYTES_MAX <= PACKAGE_BYTES_MAX);
    assert!(TIMEOUT_MS_DEFAULT <= TIMEOUT_MS_MAX);
    assert!(REDIS_VALUE_BYTES_MAX < REDIS_WRITE_BYTES_MAX);
    assert!(GENERATION_PIECE_BYTES < ENTRY_BYTES_MAX);
    assert!(LOG_KEPT_BYTES_MIN < LOG_KEPT_BYTES_MAX);
    assert!(SNAPSHOT_PIECE_BYTES < GRPC_MESSAGE_BYTES_MAX / 2);
    assert!(TRANSFER_PAUSE_MAX.as_secs() < SNAPSHOT_LEASE.as_secs());
    assert!(LLM_TOKENS_MAX as usize * 8 <= LLM_ANSWER_BYTES_MAX);
    assert!(LLM_CONTEXT_TOKENS_MAX * 8 <= LLM_CONVERSATION_BYTES_MAX);
    assert!(SESSION_BYTES_MAX > SHARDS_MAX as usize * 75);
    assert!((TOP_K_MAX as f32) * 1.0 <= RESCORE_MAX as f32);
};
