-- Whose task it is.
CREATE TABLE owned_task_new (
    task_id   TEXT NOT NULL,
    tenant_id TEXT NOT NULL,

    PRIMARY KEY (tenant_id, task_id)
);

INSERT INTO owned_task_new (task_id, tenant_id)
SELECT o.task_id, t.tenant_id FROM owned_task o JOIN agent_task t ON t.task_id = o.task_id;

DROP TABLE owned_task;
ALTER TABLE owned_task_new RENAME TO owned_task;
