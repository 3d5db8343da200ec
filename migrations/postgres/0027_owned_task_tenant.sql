-- Whose task it is. A row that an older release wrote says nothing: while ids are unique over all
-- tenants, it need not. `aura-hitl migrate --finish` fills it in.
ALTER TABLE owned_task ADD COLUMN tenant_id TEXT NOT NULL DEFAULT '';
