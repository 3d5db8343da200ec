-- A task's id is unique within its tenant. SQLite cannot change a primary key, so the table is made
-- anew.
CREATE TABLE agent_task_new (
    task_id         TEXT NOT NULL,
    user_id         TEXT NOT NULL,
    tenant_id       TEXT NOT NULL,
    task_type       TEXT NOT NULL,
    status          TEXT NOT NULL CHECK (status IN ('REQUESTED', 'IN_PROGRESS', 'WAITING_APPROVAL', 'COMPLETED', 'FAILED')),
    progress        INTEGER NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 100),
    description     TEXT,
    input_data      TEXT,                        -- JSON, as it was sent
    result_data     TEXT,                        -- JSON, as it was sent
    plan_steps      TEXT NOT NULL DEFAULT '[]',  -- a JSON array
    hitl_request_id TEXT,                        -- the request that last gated it
    error_message   TEXT,
    started_at      TEXT,
    completed_at    TEXT,
    created_at      TEXT NOT NULL,
    updated_at      TEXT NOT NULL,

    PRIMARY KEY (tenant_id, task_id)
);

INSERT INTO agent_task_new (
       task_id, user_id, tenant_id, task_type, status, progress, description, input_data, result_data,
       plan_steps, hitl_request_id, error_message, started_at, completed_at, created_at, updated_at)
SELECT task_id, user_id, tenant_id, task_type, status, progress, description, input_data, result_data,
       plan_steps, hitl_request_id, error_message, started_at, completed_at, created_at, updated_at
  FROM agent_task;

DROP TABLE agent_task;
ALTER TABLE agent_task_new RENAME TO agent_task;

CREATE INDEX agent_task_newest ON agent_task (tenant_id, created_at DESC, task_id DESC);
CREATE INDEX agent_task_of_user ON agent_task (tenant_id, user_id, created_at DESC, task_id DESC);
CREATE INDEX agent_task_request ON agent_task (hitl_request_id) WHERE hitl_request_id IS NOT NULL;
CREATE INDEX agent_task_over ON agent_task (updated_at) WHERE status IN ('COMPLETED', 'FAILED');
