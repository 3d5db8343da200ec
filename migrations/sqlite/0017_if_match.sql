-- The entity tag of the content that the decider had looked at, as `If-Match` named it.
ALTER TABLE hitl_request ADD COLUMN if_match TEXT;
