-- Functions of the scripts that charge buckets. Lines that set `now`, in whole microseconds, and `has_refunds` are prepended
-- (script.rs). With refunds, history.lua follows. Times are two numbers, whole microseconds and nanoseconds. Lua's numbers are exact up to 2^53, which is the year
-- 2255 in us. Times of buckets are relative to now. A sum above 2^53 may be wrong by 1 us, but is twice as long as any burst.

-- Returns the time until full with the same number of used units under another interval.
local function carry_over(us, ns, from, to)
  -- Six roundings, each by less than 1 part in 2^53, are covered by 8 parts. Then round up to whole us. Times above 136 years
  -- are cut.
  us = (us + ns / 1000) * (tonumber(to) / tonumber(from)) * (1 + 2 ^ -50)
  return math.min(math.ceil(us), 4300000000000000), 0
end

-- Returns whether a charge fits, and the time until full with the charge. ARGV from `at`: interval in ns, burst x interval and
-- cost x interval in us and ns each, and whether the cost is above the burst (1 or 0).
local function charge(us, ns, at)
  local burst_us, burst_ns = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local cost_us, cost_ns = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local sum_us, sum_ns = us + cost_us, ns + cost_ns
  if sum_ns >= 1000 then
    sum_us, sum_ns = sum_us + 1, sum_ns - 1000
  end
  local is_free = cost_us == 0 and cost_ns == 0
  local fits = ARGV[at + 5] == '0'
    and (is_free or sum_us < burst_us or (sum_us == burst_us and sum_ns <= burst_ns))
  return fits, fits and not is_free, sum_us, sum_ns
end

-- Stores a value until this time, in us. An absolute time does not depend on when Redis starts to count.
local function store(key, value, until_us)
  redis.call('SET', key, value)
  redis.call('PEXPIREAT', key, string.format('%.0f', math.ceil((until_us + 1) / 1000)))
end
