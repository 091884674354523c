-- Functions of the scripts that charge buckets. Lines that set `now`, in whole microseconds, and `has_refunds` are prepended
-- (script.rs). Times are two numbers, whole microseconds and nanoseconds. Lua's numbers are exact up to 2^53, which is the year
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

-- With refunds, each bucket ends with the time of its creation and the total of its refunds, in us and ns. A bucket is created
-- when it is used for the first time, after it was full, and after a change of quota.
local function created()
  return has_refunds and string.format(' %.0f 0 0', now) or ''
end

-- Returns the three numbers for the reply.
local function refunds_of(history)
  local born, us, ns = string.match(history, ' (%d+) (%d+) (%d+)')
  return tonumber(born or 0), tonumber(us or 0), tonumber(ns or 0)
end

-- Refunds the part of a charge that the bucket has not regained yet. Takes the theoretical arrival time and the history of a bucket, and
-- returns the new ones. Returns nothing if nothing is refunded. ARGV from `at`: cost x interval in us and ns; the time at which
-- the bucket is full if no other charge is made, in us and ns; and the history of the bucket before the charge.
local function refund(us, ns, history, at)
  local born, refunded_us, refunded_ns = string.match(history, ' (%d+) (%d+) (%d+)')
  if born ~= ARGV[at + 4] then
    return
  end
  local cost_us, cost_ns = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  -- Refunds since the charge reduce the time at which its bucket is full.
  local left_us = tonumber(ARGV[at + 2]) - now - (refunded_us - tonumber(ARGV[at + 5]))
  local left_ns = tonumber(ARGV[at + 3]) - (refunded_ns - tonumber(ARGV[at + 6]))
  left_us, left_ns = left_us + math.floor(left_ns / 1000), left_ns % 1000
  if left_us < cost_us or (left_us == cost_us and left_ns < cost_ns) then
    cost_us, cost_ns = left_us, left_ns
  end
  if cost_us < 0 or (cost_us == 0 and cost_ns == 0) then
    return
  end
  us, ns = us - cost_us, ns - cost_ns
  us, ns = us + math.floor(ns / 1000), ns % 1000
  refunded_us, refunded_ns = refunded_us + cost_us, refunded_ns + cost_ns
  refunded_us, refunded_ns = refunded_us + math.floor(refunded_ns / 1000), refunded_ns % 1000
  return us, ns, string.format(' %s %.0f %.0f', born, refunded_us, refunded_ns)
end

-- Stores a value until this time, in us. An absolute time does not depend on when Redis starts to count.
local function store(key, value, until_us)
  redis.call('SET', key, value)
  redis.call('PEXPIREAT', key, string.format('%.0f', math.ceil((until_us + 1) / 1000)))
end
