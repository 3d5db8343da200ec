-- Questions and answers about a pending request, by approvers, requesters and agents.
CREATE TABLE hitl_comment (
    tenant_id          TEXT NOT NULL,
    request_id         TEXT NOT NULL,
    number             INTEGER NOT NULL,  -- 1, 2, 3 within the request
    session_id         TEXT NOT NULL,    -- the request's
    user_id            TEXT NOT NULL,    -- the token's
    author             TEXT NOT NULL CHECK (author IN ('person', 'agent')),
    text               TEXT NOT NULL,
    created_at         TEXT NOT NULL,
    caller_source      TEXT,             -- X-DWP-Source
    caller_type        TEXT,             -- X-DWP-Caller-Type
    agent_id           TEXT,             -- X-Agent-ID
    trace_id           TEXT,             -- X-Trace-Id, else the trace id of traceparent
    gateway_request_id TEXT,             -- X-Gateway-Request-Id
    PRIMARY KEY (tenant_id, request_id, number)
);

-- The streams of agents ask by session; those of people, and the purge, by time.
CREATE INDEX hitl_comment_session ON hitl_comment (tenant_id, session_id, created_at, request_id, number);
CREATE INDEX hitl_comment_time ON hitl_comment (created_at, tenant_id, request_id, number);
