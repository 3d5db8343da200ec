-- no-transaction
-- The worker of a kind asks for what is due: first what was never tried, then the earliest.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_outbox_turn
    ON hitl_outbox (kind, (CASE WHEN attempts > 0 THEN 1 ELSE 0 END), due_at);
-- The oldest of a kind is a metric.
CREATE INDEX CONCURRENTLY IF NOT EXISTS hitl_outbox_age ON hitl_outbox (kind, created_at);
