-- Fills a ledger with as many decided requests and their tasks as $rows says: nine of ten belong to
-- tenant0, and there to 45 people alike, the others to a hundred small tenants. A task every seven
-- seconds.
INSERT INTO hitl_request (
    request_id, origin, tenant_id, session_id, user_id, action_type, fingerprint, content_hash,
    document, task_id, owns_task, created_at, expires_at, status, decided_by, decided_at, delivery,
    owed_since, due_at, sent_at, listeners, sent_to, outcome, settled_at
)
SELECT
    'req_' || id, CASE WHEN i % 2 = 0 THEN 'redis' ELSE 'http' END, tenant, 'session_' || id, person,
    'send_email', md5(id) || md5(id), md5(id) || md5(id),
    '{"requestId":"req_' || id || '","sessionId":"session_' || id || '","actionType":"send_email",'
        || '"context":{"to":"a@b.c","subject":"Weekly report","attachments":2},"status":"pending",'
        || '"userId":"' || person || '","tenantId":"' || tenant || '","createdAt":8123456789}',
    'task_' || id, true, at, at + interval '30 minutes', 'approved', person, at + interval '1 minute',
    'sent', at + interval '1 minute', at + interval '1 minute', at + interval '1 minute', 1,
    'an-earlier-history', 1, at + interval '1 minute'
FROM (
    SELECT i, left(md5(i::text), 16) AS id, 'user' || to_char(i % 50, 'FM00') AS person,
        CASE WHEN i / 50 % 10 = 9 THEN 'tenant' || 1 + i / 500 % 100 ELSE 'tenant0' END AS tenant,
        now() - i * interval '7 seconds' - interval '1 hour' AS at
    FROM generate_series(1, $rows) AS i
) AS rows;

INSERT INTO hitl_delivery (
    tenant_id, request_id, delivery, owed_since, due_at, sent_at, listeners, sent_to
)
SELECT tenant_id, request_id, delivery, owed_since, due_at, sent_at, listeners, sent_to
FROM hitl_request WHERE origin = 'redis';

INSERT INTO agent_task (
    task_id, user_id, tenant_id, task_type, status, progress, description, input_data, plan_steps,
    hitl_request_id, started_at, completed_at, created_at, updated_at
)
SELECT task_id, user_id, tenant_id, action_type, 'COMPLETED', 100, 'Send the weekly report',
    '{"to":"a@b.c","subject":"Weekly report","attachments":2}', '[]', request_id, decided_at,
    decided_at, created_at, decided_at
FROM hitl_request;
