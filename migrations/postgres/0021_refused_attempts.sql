-- Attempts to decide that were refused, for auditors: who tried what, and why it was refused.
CREATE TABLE hitl_refused_attempt (
    attempt_id         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    attempted_at       TIMESTAMPTZ NOT NULL,
    tenant_id          TEXT NOT NULL,   -- the token's, as the user and the role are
    user_id            TEXT NOT NULL,
    role               TEXT NOT NULL,
    token_id           TEXT,            -- the token's jti
    request_id         TEXT NOT NULL,   -- as it was asked for; there may be no such request
    verdict            TEXT NOT NULL CHECK (verdict IN ('approved', 'rejected')),
    error_code         TEXT NOT NULL,   -- the contract's
    reason             TEXT NOT NULL,   -- the English message of the answer
    if_match           TEXT,            -- the tag of the content that was looked at
    caller_source      TEXT,            -- X-DWP-Source
    caller_type        TEXT,            -- X-DWP-Caller-Type
    agent_id           TEXT,            -- X-Agent-ID
    trace_id           TEXT,            -- X-Trace-Id, else the trace id of traceparent
    gateway_request_id TEXT             -- X-Gateway-Request-Id
);

-- The export and the purge ask by time.
CREATE INDEX hitl_refused_attempt_time ON hitl_refused_attempt (attempted_at, attempt_id);
