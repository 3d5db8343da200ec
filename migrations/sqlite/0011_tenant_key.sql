-- A registered request's id is unique within its tenant. SQLite cannot change a primary key, so the
-- table is made anew.
CREATE TABLE hitl_request_new (
    request_id         TEXT NOT NULL,
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
    due_at             TEXT NOT NULL,            -- whoever sends it holds it until then
    attempts           INTEGER NOT NULL DEFAULT 0,
    sent_at            TEXT,
    listeners          INTEGER,                  -- subscribers of the channel when it was published

    sent_to            TEXT,                     -- which history of Redis' data took the signal
    outcome            INTEGER,                  -- its number in its session; NULL while pending
    settled_at         TEXT,                     -- when it ceased to be pending
    acted_at           TEXT,                     -- when its agent said it had acted
    trace_parent       TEXT,                     -- W3C Trace Context

    PRIMARY KEY (tenant_id, request_id),
    -- A decision has a decider and a time; nothing else has.
    CONSTRAINT decided_by_somebody CHECK (
        (status IN ('approved', 'rejected')) = (decided_by IS NOT NULL AND decided_at IS NOT NULL)
    ),
    CONSTRAINT rejected_for_a_reason CHECK ((status = 'rejected') = (reason IS NOT NULL))
);

INSERT INTO hitl_request_new (
       request_id, origin, tenant_id, session_id, user_id, action_type, fingerprint, content_hash,
       document, task_id, owns_task, created_at, expires_at, status, decided_by, decided_at, reason,
       caller_source, caller_type, agent_id, trace_id, gateway_request_id, delivery, owed_since,
       due_at, attempts, sent_at, listeners, sent_to, outcome, settled_at, acted_at, trace_parent)
SELECT request_id, origin, tenant_id, session_id, user_id, action_type, fingerprint, content_hash,
       document, task_id, owns_task, created_at, expires_at, status, decided_by, decided_at, reason,
       caller_source, caller_type, agent_id, trace_id, gateway_request_id, delivery, owed_since,
       due_at, attempts, sent_at, listeners, sent_to, outcome, settled_at, acted_at, trace_parent
  FROM hitl_request;

DROP TABLE hitl_request;
ALTER TABLE hitl_request_new RENAME TO hitl_request;

CREATE INDEX hitl_request_owed ON hitl_request (due_at) WHERE delivery = 'owed';
CREATE INDEX hitl_request_session ON hitl_request (session_id, owed_since DESC);
CREATE INDEX hitl_request_task ON hitl_request (task_id);
CREATE INDEX hitl_request_sent ON hitl_request (sent_at) WHERE delivery = 'sent';
CREATE UNIQUE INDEX hitl_request_outcome ON hitl_request (tenant_id, session_id, outcome);
CREATE INDEX hitl_request_pending ON hitl_request (expires_at) WHERE status = 'pending';
CREATE INDEX hitl_request_settled ON hitl_request (settled_at);
