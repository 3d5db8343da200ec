-- Which history of Redis' data took a signal (its replication id): when Redis has another by now, it
-- may have lost the signal.
ALTER TABLE hitl_request ADD COLUMN sent_to TEXT;

-- After Redis has changed, the relay asks for what was sent last.
CREATE INDEX hitl_request_sent ON hitl_request (sent_at) WHERE delivery = 'sent';
