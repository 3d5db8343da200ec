-- When an agent was answered the signal over HTTP (X-DWP-Caller-Type: AGENT): it has been heard then,
-- whether or not anybody listened when it was published, and is not published again.
ALTER TABLE hitl_request ADD COLUMN heard_at TEXT;
