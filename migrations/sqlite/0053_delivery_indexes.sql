-- The worker that closes the tasks of approved requests asks for these.
DROP INDEX hitl_request_task_due;
CREATE INDEX hitl_request_task_close ON hitl_request (settled_at)
 WHERE status = 'approved' AND owns_task AND NOT task_closed AND settled_at IS NOT NULL;
-- Whether a task has another pending request.
DROP INDEX hitl_request_task_waits;
CREATE INDEX hitl_request_task_pending ON hitl_request (task_id, request_id)
 WHERE task_id IS NOT NULL AND status = 'pending';
