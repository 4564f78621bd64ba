-- Tenants, their keys and what they use; other names of collections; what operators did. Times are Unix milliseconds.

CREATE TABLE tenants (
    tenant              TEXT    PRIMARY KEY NOT NULL,
    -- Its keys are refused.
    disabled            INTEGER NOT NULL DEFAULT 0,
    -- NULL: no limit.
    requests_per_second INTEGER,
    tokens_per_minute   INTEGER,
    streams_max         INTEGER,
    stored_bytes_max    INTEGER,
    -- Sum of its documents' content_bytes; counted anew by the upkeep.
    stored_bytes        INTEGER NOT NULL DEFAULT 0,
    created_ms          INTEGER NOT NULL,
    updated_ms          INTEGER NOT NULL
) STRICT;

INSERT INTO tenants (tenant, stored_bytes, created_ms, updated_ms)
SELECT 'default', coalesce(sum(content_bytes), 0), 0, 0 FROM documents;

CREATE TABLE api_keys (
    key_id     TEXT    PRIMARY KEY NOT NULL,
    -- SHA-256 of the key, which is 32 random bytes: the key itself is nowhere.
    key_hash   BLOB    NOT NULL,
    tenant     TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    -- read, write, admin; each includes those before it
    scope      TEXT    NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER,
    revoked_ms INTEGER
) STRICT;

CREATE UNIQUE INDEX api_keys_by_hash ON api_keys (key_hash);
CREATE INDEX api_keys_by_tenant ON api_keys (tenant, key_id);

CREATE TABLE usage (
    tenant            TEXT    NOT NULL,
    -- Days since 1970.
    day               INTEGER NOT NULL,
    model             TEXT    NOT NULL,
    requests          INTEGER NOT NULL,
    prompt_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (tenant, day, model)
) STRICT;

CREATE TABLE audit (
    -- UUIDv7: in the order of time.
    audit_id   TEXT    PRIMARY KEY NOT NULL,
    at_ms      INTEGER NOT NULL,
    tenant     TEXT    NOT NULL,
    -- NULL: no key was required.
    key_id     TEXT,
    request_id TEXT    NOT NULL,
    -- Method and route.
    action     TEXT    NOT NULL,
    -- The path that was called.
    target     TEXT    NOT NULL,
    -- HTTP status.
    status     INTEGER NOT NULL
) STRICT;

CREATE TABLE aliases (
    alias      TEXT    PRIMARY KEY NOT NULL,
    collection TEXT    NOT NULL,
    updated_ms INTEGER NOT NULL
) STRICT;

-- When each regular task ran last, so that of several coordinators one does it.
CREATE TABLE upkeep (
    task   TEXT    PRIMARY KEY NOT NULL,
    ran_ms INTEGER NOT NULL
) STRICT;

INSERT INTO upkeep (task, ran_ms) VALUES ('analyze', 0), ('prune', 0);

-- Bytes of the version that an upload replaced: what the tenant's sum must lose.
ALTER TABLE documents ADD COLUMN replaced_bytes INTEGER NOT NULL DEFAULT 0;

CREATE INDEX documents_by_job ON documents (job_id);
-- Titles by prefix.
CREATE INDEX documents_by_title ON documents (collection_id, tenant, title);
CREATE INDEX jobs_final ON jobs (updated_ms) WHERE state IN ('done', 'failed', 'cancelled');
