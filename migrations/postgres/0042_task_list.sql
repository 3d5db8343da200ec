-- no-transaction
-- All tasks of a tenant, the newest first. The condition is always true, and only statements that list
-- the tasks of all users name it: so Postgres does not take this index for the tasks of one user,
-- whatever it believes of the table. Takes the place of agent_task_newest, which older replicas use until
-- `aura-hitl migrate --finish`.
CREATE INDEX CONCURRENTLY IF NOT EXISTS agent_task_list ON agent_task
    (tenant_id, created_at DESC, task_id DESC)
 WHERE task_type >= '';
