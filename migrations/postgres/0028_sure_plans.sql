-- no-transaction
-- Each statement has an index that no other statement can take, and that has the rows in the order
-- which it asks for. So Postgres takes it whatever it believes of the table: of a partial index that
-- it believes to be empty, it would rather read all than find a row by its key. A condition like
-- `task_id IS NOT NULL`, which is always true, lets only those statements have the index that name the
-- column. `aura-hitl migrate --finish` drops the indexes that these take the place of.

-- The newest request of Redis in a session, and whether there is another tenant's.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_newest ON hitl_request
    (session_id, created_at DESC, owed_since DESC)
 WHERE origin <> 'http' AND session_id IS NOT NULL;
-- Whether we made a task.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_task_owned ON hitl_request
    (task_id, created_at)
 WHERE owns_task AND task_id IS NOT NULL;
-- Whether a task has requests that are under way.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_task_waits ON hitl_request
    (task_id, request_id)
 WHERE task_id IS NOT NULL AND (status = 'pending' OR delivery = 'owed');
-- The worker that closes the tasks of approved requests asks for these, and only for these.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_task_due ON hitl_request
    ((COALESCE(sent_at, settled_at)))
 WHERE status = 'approved' AND owns_task AND NOT task_closed AND delivery <> 'owed';
-- The expiry worker's.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_overdue ON hitl_request
    (expires_at)
 WHERE status = 'pending' AND decided_at IS NULL;
-- The relay's: what is owed and due, and what was sent last.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_due ON hitl_request
    (due_at)
 WHERE delivery = 'owed' AND due_at IS NOT NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_resent ON hitl_request
    (sent_at)
 WHERE delivery = 'sent' AND sent_at IS NOT NULL;
-- The pending registered requests of a person and of a tenant.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_pending_by ON hitl_request
    (tenant_id, user_id, created_at)
 WHERE status = 'pending' AND origin = 'http';
