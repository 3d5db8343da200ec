-- As on Postgres, whose planner is why they are as they are.

-- The newest request of Redis in a session, and whether there is another tenant's.
CREATE INDEX hitl_request_newest ON hitl_request
    (session_id, created_at DESC, owed_since DESC)
 WHERE origin <> 'http' AND session_id IS NOT NULL;
-- Whether we made a task.
CREATE INDEX hitl_request_task_owned ON hitl_request
    (task_id, created_at)
 WHERE owns_task AND task_id IS NOT NULL;
-- Whether a task has requests that are under way.
CREATE INDEX hitl_request_task_waits ON hitl_request
    (task_id, request_id)
 WHERE task_id IS NOT NULL AND (status = 'pending' OR delivery = 'owed');
-- The worker that closes the tasks of approved requests asks for these, and only for these.
CREATE INDEX hitl_request_task_due ON hitl_request
    (COALESCE(sent_at, settled_at))
 WHERE status = 'approved' AND owns_task AND NOT task_closed AND delivery <> 'owed';
-- The expiry worker's.
CREATE INDEX hitl_request_overdue ON hitl_request
    (expires_at)
 WHERE status = 'pending' AND decided_at IS NULL;
-- The relay's: what is owed and due, and what was sent last.
CREATE INDEX hitl_request_due ON hitl_request
    (due_at)
 WHERE delivery = 'owed' AND due_at IS NOT NULL;
CREATE INDEX hitl_request_resent ON hitl_request
    (sent_at)
 WHERE delivery = 'sent' AND sent_at IS NOT NULL;
-- The pending registered requests of a person and of a tenant.
CREATE INDEX hitl_request_pending_by ON hitl_request
    (tenant_id, user_id, created_at)
 WHERE status = 'pending' AND origin = 'http';

DROP INDEX hitl_request_session;
DROP INDEX hitl_request_task;
DROP INDEX hitl_request_task_open;
DROP INDEX hitl_request_pending;
DROP INDEX hitl_request_owed;
DROP INDEX hitl_request_sent;
DROP INDEX hitl_request_pending_of;
