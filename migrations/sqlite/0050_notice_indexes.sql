-- A worker claims what is due of its lane: first what was never tried, then the earliest. The index has the
-- rows in that order, and no other has these expressions.
CREATE INDEX hitl_outbox_lane ON hitl_outbox
    (COALESCE(lane, kind),
     (CASE WHEN failed_at IS NOT NULL THEN 2 WHEN attempts > 0 THEN 1 ELSE 0 END), due_at);
-- The oldest of a lane is a metric.
CREATE INDEX hitl_outbox_oldest ON hitl_outbox (COALESCE(lane, kind), created_at)
 WHERE failed_at IS NULL;
-- What was given up.
CREATE INDEX hitl_outbox_failed ON hitl_outbox (failed_at) WHERE failed_at IS NOT NULL;

DROP INDEX hitl_outbox_turn;
DROP INDEX hitl_outbox_age;
