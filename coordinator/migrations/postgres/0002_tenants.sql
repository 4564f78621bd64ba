-- The same tables as ../sqlite/0002_tenants.sql, which explains the columns.

CREATE TABLE tenants (
    tenant              TEXT   COLLATE "C" PRIMARY KEY,
    disabled            BIGINT NOT NULL DEFAULT 0,
    requests_per_second BIGINT,
    tokens_per_minute   BIGINT,
    streams_max         BIGINT,
    stored_bytes_max    BIGINT,
    stored_bytes        BIGINT NOT NULL DEFAULT 0,
    created_ms          BIGINT NOT NULL,
    updated_ms          BIGINT NOT NULL
);

INSERT INTO tenants (tenant, stored_bytes, created_ms, updated_ms)
SELECT 'default', coalesce(sum(content_bytes), 0), 0, 0 FROM documents;

CREATE TABLE api_keys (
    key_id     TEXT   COLLATE "C" PRIMARY KEY,
    key_hash   BYTEA  NOT NULL,
    tenant     TEXT   COLLATE "C" NOT NULL,
    name       TEXT   NOT NULL,
    scope      TEXT   NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT,
    revoked_ms BIGINT
);

CREATE UNIQUE INDEX api_keys_by_hash ON api_keys (key_hash);
CREATE INDEX api_keys_by_tenant ON api_keys (tenant, key_id);

CREATE TABLE usage (
    tenant            TEXT   COLLATE "C" NOT NULL,
    day               BIGINT NOT NULL,
    model             TEXT   COLLATE "C" NOT NULL,
    requests          BIGINT NOT NULL,
    prompt_tokens     BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    PRIMARY KEY (tenant, day, model)
);

CREATE TABLE audit (
    audit_id   TEXT   COLLATE "C" PRIMARY KEY,
    at_ms      BIGINT NOT NULL,
    tenant     TEXT   COLLATE "C" NOT NULL,
    key_id     TEXT,
    request_id TEXT   NOT NULL,
    action     TEXT   NOT NULL,
    target     TEXT   NOT NULL,
    status     BIGINT NOT NULL
);

CREATE TABLE aliases (
    alias      TEXT   COLLATE "C" PRIMARY KEY,
    collection TEXT   NOT NULL,
    updated_ms BIGINT NOT NULL
);

CREATE TABLE upkeep (
    task   TEXT   PRIMARY KEY,
    ran_ms BIGINT NOT NULL
);

INSERT INTO upkeep (task, ran_ms) VALUES ('analyze', 0), ('prune', 0);

ALTER TABLE documents ADD COLUMN replaced_bytes BIGINT NOT NULL DEFAULT 0;

CREATE INDEX documents_by_job ON documents (job_id);
-- A prefix of the title, compared by bytes: a btree entry must fit a third of a page, a title has at most 512 bytes.
CREATE INDEX documents_by_title ON documents (collection_id, tenant, title COLLATE "C");
CREATE INDEX jobs_final ON jobs (updated_ms) WHERE state IN ('done', 'failed', 'cancelled');
