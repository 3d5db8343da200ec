-- no-transaction
-- The worker that closes the tasks of approved requests asks for these. The index that this one takes the
-- place of has the time of the signal, which hitl_delivery has now.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_task_close ON hitl_request (settled_at)
 WHERE status = 'approved' AND owns_task AND NOT task_closed AND settled_at IS NOT NULL;
-- Whether a task has another pending request. The index that this one takes the place of also has all that
-- was owed when it was decided.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_task_pending ON hitl_request (task_id, request_id)
 WHERE task_id IS NOT NULL AND status = 'pending';
