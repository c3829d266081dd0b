-- A random one of the configured hosts and paths; requests are made once.
local requests, i = {}, 0
function init(args)
  math.randomseed(42)
  for n = 1, 4096 do
    requests[n] = wrk.format("GET", "/p" .. math.random(0, 9) .. "/item",
      { ["Host"] = "h" .. math.random(0, 999) .. ".bench.example" })
  end
end
function request() i = i % 4096 + 1; return requests[i] end
