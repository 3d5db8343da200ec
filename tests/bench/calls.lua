-- For wrk: makes the calls of a file in their order, each thread its share, and says in one line of
-- JSON what came of it. Arguments: the file, and how many threads there are.
--
-- The file: how many callers there are; a caller a line, as the header lines of its calls, joined by
-- a tab; then a call a line: the caller's number, method and path, and the body, if any.
local threads = 0

function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
end

local heads, callers, starts, ends = {}, {}, {}, {}
local place, step

function init(arguments)
  local lines = assert(io.lines(arguments[1]))
  for caller = 1, tonumber(lines()) do
    heads[caller] = " HTTP/1.1\r\nHost: bench\r\n" .. lines():gsub("\t", "\r\n") .. "\r\n"
  end
  for line in lines do
    local caller, start, body = line:match("^(%d+)\t([^\t]*)\t?(.*)$")
    local call = #starts + 1
    callers[call], starts[call], ends[call] = tonumber(caller), start, "\r\n"
    if body ~= "" then
      ends[call] = "Content-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
    end
  end
  step = tonumber(arguments[2])
  place = number - step
end

function request()
  place = (place + step - 1) % #starts + 1
  return starts[place] .. heads[callers[place]] .. ends[place]
end

function done(summary, latency)
  local broken = summary.errors
  io.write(string.format(
    '{"calls":%d,"micros":%d,"refused":%d,"broken":%d,"p50":%d,"p99":%d,"p999":%d}\n',
    summary.requests, summary.duration, broken.status,
    broken.connect + broken.read + broken.write + broken.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)
  ))
end
