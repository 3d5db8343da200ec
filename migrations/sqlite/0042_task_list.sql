-- All tasks of a tenant, the newest first. The condition is always true, and only statements that list
-- the tasks of all users name it.
CREATE INDEX agent_task_list ON agent_task (tenant_id, created_at DESC, task_id DESC)
 WHERE task_type >= '';

DROP INDEX agent_task_newest;
