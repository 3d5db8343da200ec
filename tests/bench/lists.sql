-- Fills a ledger with as many requests of tenant0 as $rows says, of 50 people alike, one in ten pending,
-- and with their texts. One in ten thousand has a rare word, and so has the first one.
INSERT INTO hitl_request (
    request_id, origin, tenant_id, session_id, user_id, action_type, fingerprint, content_hash,
    document, task_id, owns_task, created_at, expires_at, status, decided_by, decided_at, delivery,
    owed_since, due_at, outcome, settled_at, message, etag
)
SELECT
    'req_' || id, 'http', 'tenant0', 'session_' || id, person, 'send_email', md5(id) || md5(id),
    md5(id) || md5(id),
    '{"requestId":"req_' || id || '","sessionId":"session_' || id || '","actionType":"send_email",'
        || '"context":{"to":"a@b.c","subject":"Weekly report","attachments":2},"status":"pending",'
        || '"userId":"' || person || '","tenantId":"tenant0","createdAt":8123456789}',
    'task_' || id, false, at, CASE WHEN is_pending THEN now() + interval '1 day' - i * interval '1 ms'
                                   ELSE at + interval '30 minutes' END,
    CASE WHEN is_pending THEN 'pending' ELSE 'approved' END,
    CASE WHEN NOT is_pending THEN person END, CASE WHEN NOT is_pending THEN at END, 'sent', at, at,
    CASE WHEN NOT is_pending THEN 1 END, CASE WHEN NOT is_pending THEN at END,
    'Send the weekly report?', md5(id) || md5(id)
FROM (
    SELECT i, left(md5(i::text), 16) AS id, 'user' || to_char(i / 10 % 50, 'FM00') AS person,
        i % 10 = 0 AS is_pending, now() - i * interval '1 second' - interval '1 hour' AS at
    FROM generate_series(1, $rows) AS i
) AS rows;

DROP INDEX hitl_search_words;
INSERT INTO hitl_search (request_id, tenant_id, body)
SELECT request_id, tenant_id,
    request_id || ' ' || session_id || ' ' || user_id || ' send_email send the weekly report? to a@b.c '
        || CASE WHEN row_number() OVER (ORDER BY request_id) % 10000 = 1 THEN '세금계산서 결재' ELSE '' END
FROM hitl_request
ON CONFLICT DO NOTHING;
CREATE INDEX hitl_search_words ON hitl_search USING gin (body gin_trgm_ops);
