-- Sends one signal: SET, then PUBLISH, unless the session has moved on.
-- A script, so that nothing comes between looking at the session and sending.
--
-- KEYS[1]  hitl:signal:{sessionId}
-- KEYS[2]  the rank of the signal that is there; it shares KEYS[1]'s cluster slot
-- KEYS[3]  hitl:session:{sessionId}, the session's pointer
-- ARGV     1 signal JSON · 2 its time to live in seconds · 3 its rank · 4 the channel ·
--          5 the pointer the sender saw, '' for none
-- Returns  how many subscribers the message reached, or -1: the pointer is another by now.
if (redis.call('GET', KEYS[3]) or '') ~= ARGV[5] then
  return -1
end
-- A signal that was delayed still goes out, but never replaces a newer one of its session.
if tonumber(redis.call('GET', KEYS[2]) or '0') <= tonumber(ARGV[3]) then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
  redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[2])
end
return redis.call('PUBLISH', ARGV[4], ARGV[1])
