-- Sends one signal: sets its key, publishes it, then writes the decided request. Does nothing if the
-- session pointer or the request has changed. A script, so that nothing can change in between.
--
-- KEYS  1 hitl:signal:{sessionId} · 2 the key of the signal's rank · 3 hitl:session:{sessionId} ·
--       4 hitl:request:{requestId}. On a Cluster without 3 and 4, which are in other slots: there the
--       sender checks them itself.
-- ARGV  1 the signal's JSON · 2 its time to live in seconds · 3 its rank · 4 the channel, '' to publish
--       nothing · 5 the pointer that the sender read, '' if there was none · 6 the request that the
--       sender read, '' if there was none · 7 the decided request · 8 its time to live in seconds
-- Returns the number of subscribers of the channel · the replication id of this server. The number is
-- absent on a Cluster (a node counts only its own subscribers), if nothing was published, and if we may
-- not ask. Returns nothing at all if the pointer or the request has changed.
local function text(key)
  local value = redis.pcall('GET', key)
  return type(value) == 'string' and value or ''
end
if KEYS[4] and (text(KEYS[3]) ~= ARGV[5] or text(KEYS[4]) ~= ARGV[6]) then
  return false
end
-- A delayed signal is still published, but never replaces a newer signal under the key.
if (tonumber(text(KEYS[2])) or 0) <= tonumber(ARGV[3]) then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
  redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[2])
end
local listeners = false
if ARGV[4] ~= '' then
  -- The answer to PUBLISH would count our own subscription by pattern, too.
  local counted = KEYS[4] and redis.pcall('PUBSUB', 'NUMSUB', ARGV[4])
  listeners = counted and not counted.err and counted[2] or false
  redis.call('PUBLISH', ARGV[4], ARGV[1])
end
if KEYS[4] then
  redis.call('SET', KEYS[4], ARGV[7], 'EX', ARGV[8])
end
local info = redis.pcall('INFO', 'replication')
local replication_id = type(info) == 'string' and string.match(info, 'master_replid:(%w+)')
return { listeners, replication_id or '' }
