-- What other services still have to be told. A row is written by the statement that records the
-- decision or the registration, and deleted once its receiver has taken it. Whoever claims a row
-- holds it until due_at.
CREATE TABLE hitl_outbox (
    outbox_id  BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind       TEXT NOT NULL,      -- 'audit': an entry of the Auth server's audit log
    target     TEXT NOT NULL,      -- to whom, among the receivers of its kind
    tenant_id  TEXT NOT NULL,
    request_id TEXT NOT NULL,
    payload    TEXT NOT NULL,      -- the body, as it is sent
    created_at TIMESTAMPTZ NOT NULL,
    due_at     TIMESTAMPTZ NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0
);

-- The worker of a kind asks for what is due, the earliest first.
CREATE INDEX hitl_outbox_due ON hitl_outbox (kind, due_at);
