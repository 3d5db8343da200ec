-- What became of a request, for agents that wait over HTTP. Within a session of a tenant outcomes
-- are numbered 1, 2, 3 in the order in which they were recorded: an agent that has seen one number
-- has missed exactly what comes after it.
ALTER TABLE hitl_request ADD COLUMN outcome BIGINT;          -- its number; NULL while pending
ALTER TABLE hitl_request ADD COLUMN settled_at TIMESTAMPTZ;  -- when it ceased to be pending
ALTER TABLE hitl_request ADD COLUMN acted_at TIMESTAMPTZ;    -- when its agent said it had acted

UPDATE hitl_request SET outcome = numbered.outcome, settled_at = COALESCE(decided_at, expires_at)
  FROM (
      SELECT request_id, ROW_NUMBER() OVER (
          PARTITION BY tenant_id, session_id ORDER BY COALESCE(decided_at, expires_at), request_id
      ) AS outcome
      FROM hitl_request WHERE status <> 'pending'
  ) AS numbered
 WHERE numbered.request_id = hitl_request.request_id;

-- Two replicas cannot give one number to two outcomes: the later statement fails and is run again.
CREATE UNIQUE INDEX hitl_request_outcome ON hitl_request (tenant_id, session_id, outcome);
-- The expiry worker asks for these, and only for these.
CREATE INDEX hitl_request_pending ON hitl_request (expires_at) WHERE status = 'pending';
-- Replicas ask what others have settled last.
CREATE INDEX hitl_request_settled ON hitl_request (settled_at);
