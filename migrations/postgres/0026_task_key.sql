-- no-transaction
-- A task's id is unique within its tenant. Until no replica of an older release runs, the primary key
-- (task_id) stays as well, since they write ON CONFLICT (task_id). Then `aura-hitl migrate --finish`
-- puts this index in its place. A new database is finished at once.
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS agent_task_key ON agent_task (tenant_id, task_id);
