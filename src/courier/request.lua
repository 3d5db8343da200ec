-- Rewrites a request as decided, unless it has changed. On a Cluster only, before its signal is sent:
-- elsewhere signal.lua does both at once.
--
-- KEYS  1 hitl:request:{requestId}
-- ARGV  1 the request the sender saw, '' for none · 2 the request as decided · 3 its time to live in
--       seconds
-- Returns whether it was what the sender saw.
local value = redis.pcall('GET', KEYS[1])
if (type(value) == 'string' and value or '') ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
