-- What a job has done so far, kept until it ends: the parsed text, and the vectors step by step.
CREATE TABLE job_stages (
    job_id TEXT NOT NULL,
    -- 'parsed', or the hash of the texts that were embedded.
    part   TEXT NOT NULL,
    body   BLOB NOT NULL,
    PRIMARY KEY (job_id, part)
) STRICT;

-- Attempts made before the job was last retried by hand: what counts against the bound is the difference.
ALTER TABLE jobs ADD COLUMN attempts_before INTEGER NOT NULL DEFAULT 0;
-- Of the tenant; larger goes first.
ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;

DROP INDEX jobs_open;
CREATE INDEX jobs_open ON jobs (priority DESC, run_after_ms, created_ms) WHERE state NOT IN ('done', 'failed', 'cancelled');
CREATE INDEX jobs_by_tenant ON jobs (tenant, state, job_id);

-- What is searchable of a document: the hash of its content and of all settings that its chunks depend on, and the hash of
-- the chunks as acknowledged. An upload of the same need not be indexed again. NULL: not known.
ALTER TABLE documents ADD COLUMN indexed_from BLOB;
ALTER TABLE documents ADD COLUMN indexed_chunks BLOB;
