-- The ledger on SQLite: the same tables as on Postgres. Times are RFC 3339 text in UTC, which sorts.

-- One row per approval request, its decision in the same row: the primary key is the lock that
-- lets exactly one decision win. The row is also the outbox: `delivery` says what Redis still lacks.
CREATE TABLE hitl_request (
    request_id         TEXT PRIMARY KEY,
    origin             TEXT NOT NULL CHECK (origin IN ('redis', 'http')),
    tenant_id          TEXT NOT NULL,
    session_id         TEXT NOT NULL,
    user_id            TEXT,
    action_type        TEXT NOT NULL,
    fingerprint        TEXT NOT NULL,            -- SHA-256 of canonical action_type + context
    content_hash       TEXT NOT NULL,            -- SHA-256 of all the document says but createdAt
    document           TEXT NOT NULL,            -- the request as it was written, one JSON object
    task_id            TEXT NOT NULL,            -- its row in agent_task
    owns_task          BOOLEAN NOT NULL,         -- we made that row; no agent keeps it
    created_at         TEXT NOT NULL,
    expires_at         TEXT NOT NULL,

    status             TEXT NOT NULL CHECK (status IN ('pending', 'approved', 'rejected', 'expired', 'cancelled')),
    decided_by         TEXT,
    decided_at         TEXT,
    reason             TEXT,
    caller_source      TEXT,                     -- X-DWP-Source of the deciding call
    caller_type        TEXT,                     -- X-DWP-Caller-Type
    agent_id           TEXT,                     -- X-Agent-ID
    trace_id           TEXT,                     -- X-Trace-Id, else the trace id of traceparent
    gateway_request_id TEXT,                     -- X-Gateway-Request-Id

    delivery           TEXT NOT NULL CHECK (delivery IN ('owed', 'sent', 'superseded')),
    owed_since         TEXT NOT NULL,
    due_at             TEXT NOT NULL,     -- whoever sends it holds it until then
    attempts           INTEGER NOT NULL DEFAULT 0,
    sent_at            TEXT,
    listeners          INTEGER,                   -- subscribers of the channel when it was published

    -- A decision has a decider and a time; nothing else has.
    CONSTRAINT decided_by_somebody CHECK (
        (status IN ('approved', 'rejected')) = (decided_by IS NOT NULL AND decided_at IS NOT NULL)
    ),
    CONSTRAINT rejected_for_a_reason CHECK ((status = 'rejected') = (reason IS NOT NULL))
);

-- The relay asks for what is owed and due; nearly all rows are neither.
CREATE INDEX hitl_request_owed ON hitl_request (due_at) WHERE delivery = 'owed';
-- Polling agents ask by session, newest first.
CREATE INDEX hitl_request_session ON hitl_request (session_id, owed_since DESC);
-- A task waits as long as any of its requests is pending.
CREATE INDEX hitl_request_task ON hitl_request (task_id);

-- What agents work on. Name and columns are part of the wire contract.
CREATE TABLE agent_task (
    task_id         TEXT PRIMARY KEY,
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
    updated_at      TEXT NOT NULL
);

CREATE INDEX agent_task_newest ON agent_task (tenant_id, created_at DESC, task_id DESC);
CREATE INDEX agent_task_of_user ON agent_task (tenant_id, user_id, created_at DESC, task_id DESC);
CREATE INDEX agent_task_request ON agent_task (hitl_request_id) WHERE hitl_request_id IS NOT NULL;
