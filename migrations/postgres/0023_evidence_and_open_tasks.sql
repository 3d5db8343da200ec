-- Who decided, beyond their name: what auditors ask for.
ALTER TABLE hitl_request ADD COLUMN decider_role TEXT;  -- the token's
ALTER TABLE hitl_request ADD COLUMN token_id TEXT;      -- the token's jti

-- Whether there is nothing left to do for the task that we made for an approved request.
ALTER TABLE hitl_request ADD COLUMN task_closed BOOLEAN NOT NULL DEFAULT FALSE;
