-- no-transaction
-- The id of a request of Redis is unique by itself, since its key is.
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS hitl_request_of_redis ON hitl_request (request_id)
 WHERE origin = 'redis';
