-- Approvals that stand for later requests. A row is written by the statement that records the approval, and
-- never changes but to be ended. Who granted must still be allowed to approve whenever it is used.
CREATE TABLE hitl_grant (
    tenant_id      TEXT NOT NULL,
    grant_id       TEXT NOT NULL,
    request_id     TEXT NOT NULL,        -- whose approval it was
    granter        TEXT NOT NULL,
    granter_roles  TEXT NOT NULL,        -- JSON array: the roles of the token
    granter_groups TEXT NOT NULL,        -- JSON array: the groups of the token
    requester      TEXT NOT NULL,        -- whose requests it approves
    origin         TEXT NOT NULL,
    session_id     TEXT NOT NULL,        -- of the request; with the scope 'session' the only one
    scope          TEXT NOT NULL CHECK (scope IN ('session', 'requester')),
    action_type    TEXT NOT NULL,
    said           TEXT,                 -- hash of what the request says; NULL: any arguments
    rule           TEXT,
    policy_version TEXT,
    token_id       TEXT,
    created_at     TEXT NOT NULL,
    expires_at     TEXT NOT NULL,
    ended_at       TEXT,
    ended_by       TEXT,
    PRIMARY KEY (tenant_id, grant_id)
);

-- A new request asks by what it is; people ask for their own; the purge asks by time.
CREATE INDEX hitl_grant_covers ON hitl_grant (tenant_id, requester, action_type, expires_at);
CREATE INDEX hitl_grant_granter ON hitl_grant (tenant_id, granter, expires_at);
CREATE INDEX hitl_grant_tenant ON hitl_grant (tenant_id, expires_at);
CREATE INDEX hitl_grant_time ON hitl_grant (expires_at, tenant_id, grant_id);

-- The grant that approved a request, or that its approval made.
ALTER TABLE hitl_request ADD COLUMN grant_id TEXT;
-- The arguments that were approved instead of those that were asked: the text of `arguments`.
ALTER TABLE hitl_vote ADD COLUMN edited TEXT;
