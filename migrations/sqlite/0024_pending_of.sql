-- The pending registered requests of a person and of a tenant are counted, up to a limit, with each
-- registration.
CREATE INDEX hitl_request_pending_of ON hitl_request (tenant_id, user_id)
 WHERE status = 'pending' AND origin = 'http';
