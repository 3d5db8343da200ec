-- The deliveries of signals, in a narrow table of their own: sending a signal does not rewrite the request,
-- which is wide and has many indexes. A row is written with the decision that owes a signal, and lives as
-- long as its request. The columns of the same names in hitl_request hold what was owed when the decision
-- was written; of a decision of an older release they say what became of it. There, due_at is in the year
-- 9999 if what is owed is only here.
CREATE TABLE hitl_delivery (
    tenant_id  TEXT NOT NULL,
    request_id TEXT NOT NULL,
    delivery   TEXT NOT NULL CHECK (delivery IN ('owed', 'sent', 'superseded')),
    owed_since TIMESTAMPTZ NOT NULL,
    due_at     TIMESTAMPTZ NOT NULL,     -- whoever sends it holds it until then
    attempts   INTEGER NOT NULL DEFAULT 0,
    sent_at    TIMESTAMPTZ,
    listeners  BIGINT,                   -- subscribers of the channel when it was published
    sent_to    TEXT,                     -- the replication id of the Redis that took it
    PRIMARY KEY (tenant_id, request_id)
);

-- The relay's: what is owed and due, and what was sent last.
CREATE INDEX hitl_delivery_due ON hitl_delivery (due_at) WHERE delivery = 'owed';
CREATE INDEX hitl_delivery_sent ON hitl_delivery (sent_at) WHERE delivery = 'sent';

COMMENT ON TABLE hitl_delivery IS 'What became of the signals that decisions owe; see also hitl_request.delivery';
COMMENT ON COLUMN hitl_request.delivery IS
    'What was owed when the row was decided. If hitl_delivery has a row for the request, only that is current';

-- While a replica of an older release runs, it owes, claims and notes deliveries in hitl_request, and this
-- release in hitl_delivery. The two triggers carry each change to the other table: none of the two releases
-- may miss or repeat a delivery of the other. A trigger does nothing for a change that the other one has
-- made. `aura-hitl migrate --finish` drops them. They run with the rights of whoever migrates: the older
-- release's user may have none to the new table.
CREATE FUNCTION hitl_delivery_of_request() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF pg_trigger_depth() > 1 THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' THEN
        DELETE FROM hitl_delivery d WHERE d.tenant_id = OLD.tenant_id AND d.request_id = OLD.request_id;
        RETURN NULL;
    END IF;
    IF NEW.due_at >= '9999-12-31' THEN
        RETURN NULL; -- This release has written both.
    END IF;
    IF NEW.delivery = 'owed' OR (TG_OP = 'UPDATE' AND OLD.delivery = 'owed') THEN
        INSERT INTO hitl_delivery AS d (tenant_id, request_id, delivery, owed_since, due_at, attempts, sent_at,
                                        listeners, sent_to)
        VALUES (NEW.tenant_id, NEW.request_id, NEW.delivery, NEW.owed_since, NEW.due_at, NEW.attempts,
                NEW.sent_at, NEW.listeners, NEW.sent_to)
        ON CONFLICT (tenant_id, request_id) DO UPDATE SET
            delivery = excluded.delivery, owed_since = excluded.owed_since, due_at = excluded.due_at,
            attempts = excluded.attempts, sent_at = excluded.sent_at, listeners = excluded.listeners,
            sent_to = excluded.sent_to
        WHERE (d.delivery, d.owed_since, d.due_at, d.attempts, d.sent_at, d.listeners, d.sent_to)
            IS DISTINCT FROM (excluded.delivery, excluded.owed_since, excluded.due_at, excluded.attempts,
                              excluded.sent_at, excluded.listeners, excluded.sent_to);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION hitl_request_of_delivery() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF pg_trigger_depth() > 1 THEN
        RETURN NULL;
    END IF;
    UPDATE hitl_request r
       SET delivery = NEW.delivery, owed_since = NEW.owed_since, due_at = NEW.due_at,
           attempts = NEW.attempts, sent_at = NEW.sent_at, listeners = NEW.listeners, sent_to = NEW.sent_to
     WHERE r.tenant_id = NEW.tenant_id AND r.request_id = NEW.request_id
       AND (r.delivery, r.owed_since, r.due_at, r.attempts, r.sent_at, r.listeners, r.sent_to)
           IS DISTINCT FROM (NEW.delivery, NEW.owed_since, NEW.due_at, NEW.attempts, NEW.sent_at,
                             NEW.listeners, NEW.sent_to);
    RETURN NULL;
END $$;

CREATE TRIGGER hitl_delivery_of_request
    AFTER INSERT OR DELETE OR UPDATE OF delivery, due_at, attempts, sent_at, listeners, sent_to
    ON hitl_request FOR EACH ROW EXECUTE FUNCTION hitl_delivery_of_request();
CREATE TRIGGER hitl_request_of_delivery AFTER INSERT OR UPDATE
    ON hitl_delivery FOR EACH ROW EXECUTE FUNCTION hitl_request_of_delivery();

-- What is owed, and what Redis may still lose: signals live five minutes. Each by its index: writes to
-- hitl_request wait for the end of this migration.
INSERT INTO hitl_delivery (tenant_id, request_id, delivery, owed_since, due_at, attempts, sent_at, listeners,
                           sent_to)
SELECT tenant_id, request_id, delivery, owed_since, due_at, attempts, sent_at, listeners, sent_to
  FROM hitl_request
 WHERE delivery = 'owed' AND due_at IS NOT NULL AND due_at <= 'infinity'
UNION ALL
SELECT tenant_id, request_id, delivery, owed_since, due_at, attempts, sent_at, listeners, sent_to
  FROM hitl_request
 WHERE delivery = 'sent' AND sent_at IS NOT NULL AND sent_at > now() - INTERVAL '10 minutes';
