-- The grants in force that cover a request, and those that somebody made, as on Postgres.
DROP INDEX hitl_grant_covers;
DROP INDEX hitl_grant_granter;
CREATE INDEX hitl_grant_live ON hitl_grant (requester, action_type, expires_at) WHERE ended_at IS NULL;
CREATE INDEX hitl_grant_made ON hitl_grant (granter, expires_at) WHERE ended_at IS NULL;
