#!lua flags=no-writes
-- `no-writes` in the first line: without it, Redis 7 delays the script while writes are paused.
--
-- Reads a request and the pointer of its session in one round trip. The script guesses the session's id
-- from the request's text. The caller must compare the guess with the session in the parsed request.
--
-- KEYS  1 hitl:request:{requestId}
-- ARGV  1 the prefix of a session pointer's key. That key is not in KEYS and may be in another slot, so
--       this script cannot run on a Cluster.
-- Returns nothing if there is no request. Else: its text ('' if the value is not a string) · its
-- remaining time to live in milliseconds, negative if it does not expire · the guessed session, if its
-- pointer could be read · the pointer, if there is one.
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
