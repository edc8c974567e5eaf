-- wrk: scoring requests with many tokens in turn. Template of benchmarks.tokens.
local requests = {}
local last = 0

function init(args)
  for token in io.lines('@TOKENS@') do
    local headers = {["Content-Type"] = "application/json", ["Host"] = wrk.host .. ":" .. wrk.port}
    if token ~= "-" then headers["Authorization"] = "Bearer " .. token end
    requests[#requests + 1] = wrk.format("POST", wrk.path, headers, '@BODY@')
  end
end

function request()
  last = last % #requests + 1
  return requests[last]
end
