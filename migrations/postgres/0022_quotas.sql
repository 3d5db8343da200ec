-- How many bytes a tenant has registered in the present hour. One row per tenant. Replicas add what
-- they have registered every few seconds.
CREATE TABLE hitl_tenant_usage (
    tenant_id TEXT PRIMARY KEY,
    hour      TIMESTAMPTZ NOT NULL,      -- the beginning of the hour that bytes is about
    bytes     BIGINT NOT NULL
);
