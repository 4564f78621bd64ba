-- The same as ../sqlite/0004_listings_and_turns.sql, which explains indexes and column.

DROP INDEX documents_by_creation;
DROP INDEX documents_by_title;
-- Titles compare by bytes, as in SQLite: without this no index finds a prefix. No row is written anew.
ALTER TABLE documents ALTER COLUMN title TYPE TEXT COLLATE "C";
CREATE INDEX documents_by_creation ON documents (collection_id, tenant, created_ms, document_id);
-- A btree entry must fit a third of a page: a title has at most 512 bytes, an id at most 512.
CREATE INDEX documents_by_title ON documents (collection_id, tenant, title, document_id);

ALTER TABLE upkeep ADD COLUMN begun_ms BIGINT NOT NULL DEFAULT 0;
