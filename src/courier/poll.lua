#!lua flags=no-writes
-- Says above that it only reads: else Redis holds it up whenever writes are paused (Redis 7).
--
-- Reads, in one round trip, what a session names, its signal, and the request which that answers.
-- Which one that is, is guessed from the signal's text: whoever parses it must not rely on the guess.
--
-- KEYS  1 hitl:session:{sessionId} · 2 hitl:signal:{sessionId}
-- ARGV  1 what stands before a request's id in its key. That key is in another slot, so this is not
--       for a Cluster.
-- Returns what the session names · the signal · the request that was guessed · its text; each of them
-- only if it is there.
local refused
local function text(key)
  local value = redis.pcall('GET', key)
  if type(value) == 'table' then
    if not string.find(value.err, 'WRONGTYPE', 1, true) then
      refused = value
    end
    -- No id and no JSON.
    return '\239\191\189'
  end
  return value
end
local pointer, signal = text(KEYS[1]), text(KEYS[2])
local request = signal and string.match(signal, '"requestId"%s*:%s*"([^"\\]+)"') or false
local document = request and text(ARGV[1] .. request)
return refused or { pointer, signal, request, document }
