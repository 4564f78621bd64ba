-- The same as ../sqlite/0003_ingest_stages.sql, which explains the columns.

CREATE TABLE job_stages (
    job_id TEXT  NOT NULL,
    part   TEXT  NOT NULL,
    body   BYTEA NOT NULL,
    PRIMARY KEY (job_id, part)
);

ALTER TABLE jobs ADD COLUMN attempts_before BIGINT NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN priority BIGINT NOT NULL DEFAULT 0;

DROP INDEX jobs_open;
CREATE INDEX jobs_open ON jobs (priority DESC, run_after_ms, created_ms) WHERE state NOT IN ('done', 'failed', 'cancelled');
CREATE INDEX jobs_by_tenant ON jobs (tenant, state, job_id);

ALTER TABLE documents ADD COLUMN indexed_from BYTEA;
ALTER TABLE documents ADD COLUMN indexed_chunks BYTEA;
