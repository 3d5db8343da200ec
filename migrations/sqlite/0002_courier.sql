-- The in-process courier's values: what Redis would hold, so that they outlive a restart with the
-- rest of their time to live.
CREATE TABLE courier_value (
    key        TEXT PRIMARY KEY,
    value      TEXT NOT NULL,
    rank       INTEGER NOT NULL DEFAULT 0,       -- of two signals of a session the higher stays
    expires_at INTEGER NOT NULL                  -- Unix milliseconds
);

CREATE INDEX courier_value_expiry ON courier_value (expires_at);
