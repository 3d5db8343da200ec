-- no-transaction
-- Pending requests by what binds them: whom a list shows what, and which rows another policy file binds
-- anew. A row without a binding is the first.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_bound ON hitl_request
    ((COALESCE(binding, '')), tenant_id, request_id)
 WHERE status = 'pending' AND session_id >= '';
