-- Counts one call against a bucket that all replicas share, unless the bucket is full: the Generic
-- Cell Rate Algorithm, whose whole state is the time at which the bucket will be empty again.
-- One key, and Redis' own clock, so that the replicas' clocks do not matter.
--
-- KEYS  1 the bucket
-- ARGV  1 microseconds that one call takes to drain · 2 calls that fit into the bucket
-- Returns 0, or the microseconds after which there is room again; nothing was counted then.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local drain, full = tonumber(ARGV[1]), ARGV[1] * ARGV[2]
-- Never later than a full bucket's, should the clock have been set back.
local empty_at = math.min(tonumber(redis.call('GET', KEYS[1])) or now, now + full)
local next = math.max(empty_at, now) + drain
local wait = next - full - now
if wait > 0 then
  return wait
end
-- Written out: as it comes, Lua would round it to 14 digits.
redis.call('SET', KEYS[1], string.format('%.0f', next), 'PX', math.ceil((next - now) / 1000))
return 0
