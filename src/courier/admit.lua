-- Counts one call in a bucket that all replicas share, unless the bucket is full. This is the Generic
-- Cell Rate Algorithm: its whole state is the time at which the bucket will be empty again. The script
-- uses one key and Redis' own clock, so that the replicas' clocks do not matter.
--
-- KEYS  1 the bucket
-- ARGV  1 microseconds until the bucket has room for one more call · 2 calls that fit into the bucket
-- Returns 0 if the call was counted; else the microseconds until there is room.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local drain, full = tonumber(ARGV[1]), ARGV[1] * ARGV[2]
-- If the clock was set back, the stored time may be later than a full bucket allows.
local empty_at = math.min(tonumber(redis.call('GET', KEYS[1])) or now, now + full)
local next = math.max(empty_at, now) + drain
local wait = next - full - now
if wait > 0 then
  return wait
end
-- '%.0f', because Lua's own conversion would round the number to 14 digits.
redis.call('SET', KEYS[1], string.format('%.0f', next), 'PX', math.ceil((next - now) / 1000))
return 0
