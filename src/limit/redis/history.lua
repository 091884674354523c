-- Functions for refunds.
--
-- With refunds, each bucket ends with the time of its creation and the total of its refunds, in us and ns. A bucket is created
-- when it is used for the first time, after it was full, and after a change of quota.
local function created()
  return string.format(' %.0f 0 0', now)
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
