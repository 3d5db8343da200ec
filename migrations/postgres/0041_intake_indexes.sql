-- no-transaction
-- The newest request of Redis in a session, by the time at which its agent asked. Takes the place of
-- hitl_request_newest, which older replicas use until `aura-hitl migrate --finish`.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_latest ON hitl_request
    (session_id, (COALESCE(asked_at, created_at)) DESC, owed_since DESC)
 WHERE origin <> 'http' AND session_id IS NOT NULL;
-- A replica that begins to watch Redis reads what is pending there.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_seen ON hitl_request
    (request_id)
 WHERE origin <> 'http' AND status = 'pending';
-- Decided requests whose agents have asked again.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_asked_again ON hitl_request
    (tenant_id, asked_again_until, request_id)
 WHERE asked_again_until IS NOT NULL;
