-- Searches for wrk: each request has the next of the JSON bodies in the file that SUSUI_BODIES names, one per line.
--
--   SUSUI_BODIES=bodies.txt wrk -t 1 -c 16 -d 10s -s search.lua http://127.0.0.1:8000/api/v1/search
--
-- `susui bench http --wrk` makes the bodies, runs this, and reads the line of JSON that it prints at the end.

local requests = {}
local place = 0

function init(_)
  for body in io.lines(os.getenv("SUSUI_BODIES")) do
    requests[#requests + 1] = wrk.format("POST", nil, { ["Content-Type"] = "application/json" }, body)
  end
end

function request()
  place = place % #requests + 1
  return requests[place]
end

function done(summary, latency, _)
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "requests_per_second": %.3f, "p50_ms": %.4f, "p99_ms": %.4f, "errors": %d}',
    summary.requests,
    summary.requests / (summary.duration / 1e6),
    latency:percentile(50) / 1000,
    latency:percentile(99) / 1000,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
