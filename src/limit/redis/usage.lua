-- Returns three numbers for each bucket of KEYS: the time until it is full, in us and ns, and the interval in ns that this time is
-- counted by. Changes nothing. The format of a bucket is that of gcra.lua.
local answer = {}
for _, key in ipairs(KEYS) do
  local us, ns, interval = 0, 0, '1'
  local value = redis.call('GET', key)
  if value then
    local tat_us, tat_ns, counted_by = string.match(value, '^(%d+) (%d+) (%d+)')
    if tonumber(tat_us) >= now then
      us, ns, interval = tonumber(tat_us) - now, tonumber(tat_ns), counted_by
    end
  end
  table.insert(answer, us)
  table.insert(answer, ns)
  table.insert(answer, interval)
end
return answer
