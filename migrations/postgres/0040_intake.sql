-- A request that an agent wrote to Redis has a row as soon as it was seen there: origin 'redis', status
-- 'pending'. Nobody has decided it, and the row refuses no decision.
ALTER TABLE hitl_request ADD COLUMN asked_at TIMESTAMPTZ;           -- by the key's remaining time to live; NULL: created_at
ALTER TABLE hitl_request ADD COLUMN moved_on BOOLEAN NOT NULL DEFAULT FALSE; -- its session waits for something else
ALTER TABLE hitl_request ADD COLUMN seen_on TEXT;                   -- replication id of the Redis that last held the key
ALTER TABLE hitl_request ADD COLUMN asked_again_until TIMESTAMPTZ;  -- decided, and pending in Redis again until then

-- Which replica does what only one may do. It holds the lease until that time.
CREATE TABLE hitl_lease (
    name       TEXT PRIMARY KEY,
    holder     TEXT NOT NULL,
    held_until TIMESTAMPTZ NOT NULL
);
