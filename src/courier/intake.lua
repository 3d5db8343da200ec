#!lua flags=no-writes
-- `no-writes` in the first line: without it, Redis 7 delays the script while writes are paused.
--
-- Reads requests and the pointers of their sessions in one round trip, as `find.lua` reads one. The same
-- step tells which server answered: a request that is absent after its server was replaced is not gone.
--
-- KEYS  hitl:request:{requestId}, as many as wanted; on a Cluster one
-- ARGV  1 the prefix of a session pointer's key; '' on a Cluster, where that key may be in another slot ·
--       2 after how many bytes of requests no further one is read · 3 the most bytes of one request
-- Returns the replication id of this server, '' if it is no master or we may not ask · for each key
-- nothing if there is no request, else what `find.lua` returns, with the text '' if it is too long.
-- Requests that are left for the next call have a remaining time to live of -3.
local info = redis.pcall('INFO', 'replication')
local is_master = type(info) == 'string' and string.find(info, 'role:master', 1, true)
local found = { is_master and string.match(info, 'master_replid:(%w+)') or '' }
local room = tonumber(ARGV[2])
for number, key in ipairs(KEYS) do
  local answer = { '', -3, false, false }
  if room > 0 then
    local length = redis.pcall('STRLEN', key)
    if type(length) == 'table' and not string.find(length.err, 'WRONGTYPE', 1, true) then
      return length
    end
    local is_text = type(length) == 'number' and length <= tonumber(ARGV[3])
    local document = is_text and redis.call('GET', key)
    if not is_text then
      answer = { '', -1, false, false }
    elseif not document then
      answer = false
    else
      room = room - #document
      local session = ARGV[1] ~= ''
        and string.match(document, '"sessionId"%s*:%s*"([^"\\]+)"') or false
      local pointer = session and redis.pcall('GET', ARGV[1] .. session)
      if type(pointer) == 'table' then
        session, pointer = false, false
      end
      answer = { document, redis.call('PTTL', key), session, pointer }
    end
  end
  found[number + 1] = answer
end
return found
