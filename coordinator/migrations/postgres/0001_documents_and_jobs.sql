-- The same tables as ../sqlite/0001_documents_and_jobs.sql, which explains the columns. Integers are BIGINT throughout, so that both
-- engines give and take the same types; ids compare by bytes, as in SQLite and in the shards.

CREATE TABLE documents (
    collection_id BIGINT NOT NULL,
    tenant        TEXT   COLLATE "C" NOT NULL,
    document_id   TEXT   COLLATE "C" NOT NULL,
    version       BIGINT NOT NULL,
    state         TEXT   NOT NULL,
    title         TEXT   NOT NULL,
    metadata_json TEXT   NOT NULL,
    media_type    TEXT   NOT NULL,
    file_name     TEXT   NOT NULL,
    content_hash  BYTEA  NOT NULL,
    content_bytes BIGINT NOT NULL,
    upload        BYTEA,
    extracted     TEXT,
    chunk_count   BIGINT NOT NULL DEFAULT 0,
    job_id        TEXT   NOT NULL,
    created_ms    BIGINT NOT NULL,
    updated_ms    BIGINT NOT NULL,
    PRIMARY KEY (collection_id, tenant, document_id)
);

CREATE INDEX documents_by_creation ON documents (tenant, created_ms);

CREATE TABLE jobs (
    job_id           TEXT   PRIMARY KEY,
    collection_id    BIGINT NOT NULL,
    tenant           TEXT   COLLATE "C" NOT NULL,
    document_id      TEXT   COLLATE "C" NOT NULL,
    document_version BIGINT NOT NULL,
    state            TEXT   NOT NULL,
    progress         DOUBLE PRECISION NOT NULL,
    error_kind       TEXT,
    error_message    TEXT,
    chunk_count      BIGINT NOT NULL DEFAULT 0,
    session          TEXT,
    attempt          BIGINT NOT NULL,
    run_after_ms     BIGINT NOT NULL,
    lease_until_ms   BIGINT,
    cancel_requested BIGINT NOT NULL DEFAULT 0,
    created_ms       BIGINT NOT NULL,
    updated_ms       BIGINT NOT NULL
);

CREATE INDEX jobs_open ON jobs (run_after_ms, created_ms) WHERE state NOT IN ('done', 'failed', 'cancelled');
CREATE INDEX jobs_of_document ON jobs (collection_id, tenant, document_id);

CREATE TABLE idempotency_keys (
    tenant       TEXT   COLLATE "C" NOT NULL,
    key          TEXT   NOT NULL,
    request_hash BYTEA  NOT NULL,
    document_id  TEXT   NOT NULL,
    job_id       TEXT   NOT NULL,
    created_ms   BIGINT NOT NULL,
    PRIMARY KEY (tenant, key)
);

CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_ms);
