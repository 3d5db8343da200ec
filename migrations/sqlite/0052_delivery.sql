-- The deliveries of signals, in a table of their own, as on Postgres. One process uses the file, so no older
-- release writes the columns of the same names in hitl_request meanwhile. A later migration must not
-- rebuild hitl_request without taking these rows along: they go with their requests.
CREATE TABLE hitl_delivery (
    tenant_id  TEXT NOT NULL,
    request_id TEXT NOT NULL,
    delivery   TEXT NOT NULL CHECK (delivery IN ('owed', 'sent', 'superseded')),
    owed_since TEXT NOT NULL,
    due_at     TEXT NOT NULL,     -- whoever sends it holds it until then
    attempts   INTEGER NOT NULL DEFAULT 0,
    sent_at    TEXT,
    listeners  INTEGER,           -- subscribers of the channel when it was published
    sent_to    TEXT,              -- the replication id of the Redis that took it
    PRIMARY KEY (tenant_id, request_id),
    FOREIGN KEY (tenant_id, request_id) REFERENCES hitl_request (tenant_id, request_id) ON DELETE CASCADE
);

-- The relay's: what is owed and due, and what was sent last.
CREATE INDEX hitl_delivery_due ON hitl_delivery (due_at) WHERE delivery = 'owed';
CREATE INDEX hitl_delivery_sent ON hitl_delivery (sent_at) WHERE delivery = 'sent';

-- What is owed, and what Redis may still lose: signals live five minutes.
INSERT INTO hitl_delivery (tenant_id, request_id, delivery, owed_since, due_at, attempts, sent_at, listeners,
                           sent_to)
SELECT tenant_id, request_id, delivery, owed_since, due_at, attempts, sent_at, listeners, sent_to
  FROM hitl_request
 WHERE delivery = 'owed'
    OR (delivery = 'sent' AND sent_at > strftime('%Y-%m-%dT%H:%M:%f', 'now', '-10 minutes'));

DROP INDEX hitl_request_due;
DROP INDEX hitl_request_resent;
