#!lua flags=no-writes
-- `no-writes` in the first line: without it, Redis 7 delays the script while writes are paused.
--
-- Reads a session's pointer, its signal, and the request that the signal answers, in one round trip. The
-- script guesses the request's id from the signal's text. The caller must compare the guess with the id
-- in the parsed signal.
--
-- KEYS  1 hitl:session:{sessionId} · 2 hitl:signal:{sessionId}
-- ARGV  1 the prefix of a request's key. That key is not in KEYS and may be in another slot, so this
--       script cannot run on a Cluster.
-- Returns the pointer · the signal · the guessed request id · the request's text. Each is absent if its
-- key does not exist.
local refused
local function text(key)
  local value = redis.pcall('GET', key)
  if type(value) == 'table' then
    if not string.find(value.err, 'WRONGTYPE', 1, true) then
      refused = value
    end
    -- U+FFFD in UTF-8: neither an id nor JSON.
    return '\239\191\189'
  end
  return value
end
local pointer, signal = text(KEYS[1]), text(KEYS[2])
local request = signal and string.match(signal, '"requestId"%s*:%s*"([^"\\]+)"') or false
local document = request and text(ARGV[1] .. request)
return refused or { pointer, signal, request, document }
