#!lua flags=no-writes
-- Says above that it only reads: else Redis holds it up whenever writes are paused (Redis 7).
--
-- Reads a request, and along with it what its session names, in one round trip. Where the request
-- says which session that is, is guessed from its text: whoever parses it must not rely on the guess.
--
-- KEYS  1 hitl:request:{requestId}
-- ARGV  1 what stands before a session's id in its key. That key is in another slot, so this is not
--       for a Cluster.
-- Returns nothing if there is no request; else its text ('' if it is no string) · the rest of its time
-- to live in milliseconds, negative without end · the session that was guessed, if it could be read ·
-- what its key holds, if anything.
local document = redis.pcall('GET', KEYS[1])
if type(document) == 'table' then
  if string.find(document.err, 'WRONGTYPE', 1, true) then
    return { '', -1, false, false }
  end
  return document
end
if not document then
  return false
end
local session = string.match(document, '"sessionId"%s*:%s*"([^"\\]+)"') or false
local pointer = session and redis.pcall('GET', ARGV[1] .. session)
if type(pointer) == 'table' then
  session, pointer = false, false
end
return { document, redis.call('PTTL', KEYS[1]), session, pointer }
