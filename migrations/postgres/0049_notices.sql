-- Notices to people: rows of the outbox that one channel sends have its lane, and those that were given up
-- stay, with what the last try said.
ALTER TABLE hitl_outbox
    ADD COLUMN lane      TEXT,          -- of a channel: 'webhook/ops', 'mail', 'slack'; NULL: that of its kind
    ADD COLUMN failed_at TIMESTAMPTZ,   -- when it was given up
    ADD COLUMN error     TEXT;          -- what the last try said
