-- no-transaction
-- The worker that closes the tasks of approved requests asks for these, and only for these.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_task_open ON hitl_request (settled_at)
 WHERE status = 'approved' AND owns_task AND NOT task_closed;
