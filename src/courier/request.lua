-- Writes a decided request under its key, unless the request there has changed. Runs on a Cluster only,
-- before signal.lua; on a single server, signal.lua does both in one step.
--
-- KEYS  1 hitl:request:{requestId}
-- ARGV  1 the request that the sender read, '' if there was none · 2 the decided request · 3 its time to
--       live in seconds
-- Returns 1 if the request was unchanged and was written, else 0.
local value = redis.pcall('GET', KEYS[1])
if (type(value) == 'string' and value or '') ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
