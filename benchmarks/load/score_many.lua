-- wrk: scoring requests to many services in turn. Template of benchmarks.harness.wrk.
local requests = {}
local last = 0

function init(args)
  local headers = {["Content-Type"] = "application/json", ["Authorization"] = "Bearer @KEY@", ["Host"] = wrk.host .. ":" .. wrk.port}
  for path in ('@PATHS@'):gmatch("%S+") do
    requests[#requests + 1] = wrk.format("POST", path, headers, '@BODY@')
  end
end

function request()
  last = last % #requests + 1
  return requests[last]
end
