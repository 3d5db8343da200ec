-- Sends one signal: SET, then PUBLISH, then the request as decided, unless the session has moved on
-- or its request has changed. A script, so that nothing comes between looking and sending.
--
-- KEYS  1 hitl:signal:{sessionId} · 2 the rank of the signal that is there ·
--       3 hitl:session:{sessionId} · 4 hitl:request:{requestId}; on a Cluster, where they are in
--       other slots, without the last two: the sender looks there itself
-- ARGV  1 signal JSON · 2 its time to live in seconds · 3 its rank · 4 the channel, '' to say
--       nothing · 5 the pointer the sender saw, '' for none · 6 the request the sender saw, '' for
--       none · 7 the request as decided · 8 its time to live in seconds
-- Returns how many are subscribed to the channel (nothing on a Cluster, whose nodes count only their
-- own, nor if nothing was said or we may not ask), and of which history of data the signal is part now; nothing at all
-- if something is another by now.
local function text(key)
  local value = redis.pcall('GET', key)
  return type(value) == 'string' and value or ''
end
if KEYS[4] and (text(KEYS[3]) ~= ARGV[5] or text(KEYS[4]) ~= ARGV[6]) then
  return false
end
-- A signal that was delayed still goes out, but never replaces a newer one of its session.
if (tonumber(text(KEYS[2])) or 0) <= tonumber(ARGV[3]) then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
  redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[2])
end
local listeners = false
if ARGV[4] ~= '' then
  -- What PUBLISH answers counts our own patterns, too.
  local counted = KEYS[4] and redis.pcall('PUBSUB', 'NUMSUB', ARGV[4])
  listeners = counted and not counted.err and counted[2] or false
  redis.call('PUBLISH', ARGV[4], ARGV[1])
end
if KEYS[4] then
  redis.call('SET', KEYS[4], ARGV[7], 'EX', ARGV[8])
end
local info = redis.pcall('INFO', 'replication')
local history = type(info) == 'string' and string.match(info, 'master_replid:(%w+)')
return { listeners, history or '' }
