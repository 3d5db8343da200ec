-- Sends one signal: SET, then PUBLISH, then the request as decided, unless the session has moved on
-- or its request has changed. A script, so that nothing comes between looking and sending.
--
-- KEYS  1 hitl:signal:{sessionId} · 2 the rank of the signal that is there ·
--       3 hitl:session:{sessionId} · 4 hitl:request:{requestId}
-- ARGV  1 signal JSON · 2 its time to live in seconds · 3 its rank · 4 the channel ·
--       5 the pointer the sender saw, '' for none · 6 the request as decided ·
--       7 its time to live in seconds · 8 the request the sender saw, '' for none
-- Returns how many subscribers the message reached, or -1: something is another by now.
local function text(key)
  local value = redis.pcall('GET', key)
  return type(value) == 'string' and value or ''
end
if text(KEYS[3]) ~= ARGV[5] or text(KEYS[4]) ~= ARGV[8] then
  return -1
end
-- A signal that was delayed still goes out, but never replaces a newer one of its session.
if (tonumber(text(KEYS[2])) or 0) <= tonumber(ARGV[3]) then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
  redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[2])
end
local listeners = redis.call('PUBLISH', ARGV[4], ARGV[1])
redis.call('SET', KEYS[4], ARGV[6], 'EX', ARGV[7])
return listeners
