-- What bounds registrations: how many of a person's and of a tenant's requests are pending, and how
-- many bytes a tenant has registered in the present hour.

-- Counted up to a limit with each registration.
CREATE INDEX hitl_request_pending_of ON hitl_request (tenant_id, user_id)
    WHERE status = 'pending' AND origin = 'http';

-- One row per tenant. Replicas add what they have registered every few seconds.
CREATE TABLE hitl_tenant_usage (
    tenant_id TEXT PRIMARY KEY,
    hour      TIMESTAMPTZ NOT NULL,      -- the beginning of the hour that bytes is about
    bytes     BIGINT NOT NULL
);
