-- no-transaction
-- One index for each order of a list. The last condition of each is always true, and only the list's own
-- statements name it, so that Postgres takes the index for no other statement, whatever it believes of
-- the table.

-- Pending requests of a tenant, and of one user of a tenant, by the time that is left.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_list_pending ON hitl_request
    (tenant_id, expires_at, request_id)
 WHERE status = 'pending' AND fingerprint >= '';
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_list_own ON hitl_request
    (tenant_id, user_id, expires_at, request_id)
 WHERE status = 'pending' AND content_hash >= '';
-- Closed requests of a tenant, by the time of their closing, which is never missing. As an expression it
-- gives this index an order that hitl_request_settled does not have.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_list_closed ON hitl_request
    (tenant_id, (COALESCE(settled_at, created_at)), request_id)
 WHERE status <> 'pending' AND fingerprint >= '';
-- All requests of a tenant, by age.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_list_created ON hitl_request
    (tenant_id, created_at, request_id)
 WHERE action_type >= '';
