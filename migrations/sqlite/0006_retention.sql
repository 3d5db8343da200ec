-- What must be known of requests and tasks after a purge has deleted their rows.

-- The highest number of an outcome that was ever deleted, of all sessions: one row. Numbers go on
-- above it, so that no agent's Last-Event-ID is ever ahead of the ledger.
CREATE TABLE purged_outcome (highest INTEGER NOT NULL);
INSERT INTO purged_outcome VALUES (0);

-- Tasks that we made for a request whose row was deleted (hitl_request.owns_task). A row goes with
-- its task.
CREATE TABLE owned_task (task_id TEXT PRIMARY KEY);

-- The purge asks for the tasks that ended longest ago.
CREATE INDEX agent_task_over ON agent_task (updated_at) WHERE status IN ('COMPLETED', 'FAILED');
