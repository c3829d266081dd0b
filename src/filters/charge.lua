-- Charges all buckets, or none: the generic cell rate algorithm as in values/rate.rs.
-- KEYS: the buckets, each a number: when it will be empty. ARGV: of each its interval, burst, cost and whether it may
-- refuse (1) or not (0); then, in tests, the time. All times in microseconds; a negative cost gives back.
-- Gives 0 and of each bucket how long until it is empty (-1: it is full), or the place of the one that refuses, and
-- for how long (-1: for ever).
local now = tonumber(ARGV[4 * #KEYS + 1])
if not now then
  local time = redis.call('TIME')
  -- Near numbers keep their fractions.
  now = (tonumber(time[1]) - 1750000000) * 1000000 + tonumber(time[2])
end
local function keep(key, empty, now)
  local life = math.max(math.ceil((empty - now) / 1000), 1)
  redis.call('SET', key, string.format('%.3f', empty), 'PX', string.format('%.0f', life))
end
local after, told, full, wait = {}, {}, 0, 0
for place = 1, #KEYS do
  local interval, burst = tonumber(ARGV[4 * place - 3]), tonumber(ARGV[4 * place - 2])
  local cost, room = tonumber(ARGV[4 * place - 1]), interval * burst
  local before = tonumber(redis.call('GET', KEYS[place]) or 0)
  if before > now + room then
    -- From when the limit had other numbers.
    before = now + room
    keep(KEYS[place], before, now)
  end
  local empty = math.max(before, now) + interval * cost
  local over = empty - now - room
  if cost > burst then over = math.huge end
  -- Sums of fractions are not exact.
  if over <= 0.5 then
    after[place], told[place] = empty, string.format('%.0f', math.max(empty - now, 0))
  elseif ARGV[4 * place] == '0' then
    told[place] = '-1'
  elseif over > wait then
    full, wait = place, over
  end
end
if full > 0 then
  if wait == math.huge then return {full, '-1'} end
  return {full, string.format('%.0f', math.ceil(wait))}
end
for place, empty in pairs(after) do
  keep(KEYS[place], empty, now)
end
-- Not by unpack, which has no room for thousands.
table.insert(told, 1, '0')
return told
