-- no-transaction
-- The grants in force that cover a request, and those that somebody made. Without the tenant, which their
-- queries hide from the planner: so no other index looks as good on a database that was never analysed.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_grant_live ON hitl_grant (requester, action_type, expires_at)
 WHERE ended_at IS NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_grant_made ON hitl_grant (granter, expires_at)
 WHERE ended_at IS NULL;
