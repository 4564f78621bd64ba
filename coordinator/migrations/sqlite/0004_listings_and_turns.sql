-- Listings of a collection's uploads, newest first and by the beginning of the title: the id makes each place in them one of its own.
DROP INDEX documents_by_creation;
DROP INDEX documents_by_title;
CREATE INDEX documents_by_creation ON documents (collection_id, tenant, created_ms, document_id);
CREATE INDEX documents_by_title ON documents (collection_id, tenant, title, document_id);

-- When somebody took the turn at a task: kept apart from when it was done last, so that a task that failed, or whose coordinator died,
-- is not taken for done.
ALTER TABLE upkeep ADD COLUMN begun_ms INTEGER NOT NULL DEFAULT 0;
