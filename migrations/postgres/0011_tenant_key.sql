-- no-transaction
-- A registered request's id is unique within its tenant. Until no replica of an older release runs,
-- the primary key (request_id) stays as well, since they write ON CONFLICT (request_id). Then
-- `aura-hitl migrate --finish` puts this index in its place. A new database is finished at once.
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_key ON hitl_request (tenant_id, request_id);
