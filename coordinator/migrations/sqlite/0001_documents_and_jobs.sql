-- Documents as uploaded, and the jobs that index them. One transaction writes a document, its job and its idempotency key.
-- Times are Unix milliseconds. Identity of a document is (collection id, tenant, document id): a collection created again under
-- an old name has another id and so no old documents.

CREATE TABLE documents (
    collection_id INTEGER NOT NULL,
    tenant        TEXT    NOT NULL,
    document_id   TEXT    NOT NULL,
    -- Raised by each upload and each deletion: a job of an older version must not write.
    version       INTEGER NOT NULL,
    -- processing, ready, failed
    state         TEXT    NOT NULL,
    title         TEXT    NOT NULL,
    metadata_json TEXT    NOT NULL,
    media_type    TEXT    NOT NULL,
    file_name     TEXT    NOT NULL,
    -- SHA-256 of the upload.
    content_hash  BLOB    NOT NULL,
    content_bytes INTEGER NOT NULL,
    -- The upload; NULL once indexed.
    upload        BLOB,
    -- The extracted text; stays, so that the collection can be embedded again.
    extracted     TEXT,
    chunk_count   INTEGER NOT NULL DEFAULT 0,
    job_id        TEXT    NOT NULL,
    created_ms    INTEGER NOT NULL,
    updated_ms    INTEGER NOT NULL,
    PRIMARY KEY (collection_id, tenant, document_id)
) STRICT;

CREATE INDEX documents_by_creation ON documents (tenant, created_ms);

CREATE TABLE jobs (
    job_id           TEXT    PRIMARY KEY,
    collection_id    INTEGER NOT NULL,
    tenant           TEXT    NOT NULL,
    document_id      TEXT    NOT NULL,
    document_version INTEGER NOT NULL,
    -- queued, parsing, chunking, embedding, indexing, done, failed, cancelled; the last three are final
    state            TEXT    NOT NULL,
    -- 0..1
    progress         REAL    NOT NULL,
    error_kind       TEXT,
    error_message    TEXT,
    chunk_count      INTEGER NOT NULL DEFAULT 0,
    -- Session token, once done.
    session          TEXT,
    -- Raised by each claim; every later change names it, so that a worker that lost its lease changes nothing.
    attempt          INTEGER NOT NULL,
    -- Claimable from here on.
    run_after_ms     INTEGER NOT NULL,
    -- Claimed until here; NULL while queued or final.
    lease_until_ms   INTEGER,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    created_ms       INTEGER NOT NULL,
    updated_ms       INTEGER NOT NULL
) STRICT;

CREATE INDEX jobs_open ON jobs (run_after_ms, created_ms) WHERE state NOT IN ('done', 'failed', 'cancelled');
CREATE INDEX jobs_of_document ON jobs (collection_id, tenant, document_id);

CREATE TABLE idempotency_keys (
    tenant       TEXT    NOT NULL,
    key          TEXT    NOT NULL,
    -- SHA-256 of the request: the same key with another request is refused.
    request_hash BLOB    NOT NULL,
    document_id  TEXT    NOT NULL,
    job_id       TEXT    NOT NULL,
    created_ms   INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) STRICT;

CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_ms);
