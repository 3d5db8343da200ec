-- Ways to decide beside approve and reject. An answer has the status 'rejected' and a response: to an older
-- replica it is a rejection, after which no agent acts.
ALTER TABLE hitl_request ADD COLUMN offered TEXT;    -- the ways that the agent can handle, by comma; NULL: approve and reject
ALTER TABLE hitl_request ADD COLUMN arguments TEXT;  -- JSON object: approved with these instead of those that were asked
ALTER TABLE hitl_request ADD COLUMN response TEXT;   -- JSON: the answer; NULL: none
