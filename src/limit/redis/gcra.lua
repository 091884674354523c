-- Charges all buckets, or none. A first line that sets `now`, in whole microseconds, is prepended (gcra.rs).
-- KEYS: one per bucket. ARGV, seven per bucket: whether its rejection rejects the whole charge (1 or 0), interval in ns,
-- burst x interval and cost x interval in us and ns each, and whether the cost is above the burst (1 or 0).
-- With lease requests (lease.rs) four more per bucket follow: units, duration in us, and interval in us and ns.
-- Returns three numbers per bucket: 0 if the charge does not fit, or else 1 plus the leased units; and the time until the
-- bucket is full, in us and ns. The last number is the time.
--
-- A bucket is the text "us ns interval": the theoretical arrival time in two parts, and the interval that it is counted
-- by. Lua's numbers are exact up to 2^53, which is the year 2255 in us. Both parts are always whole numbers.
-- Comparisons are relative to now. A sum above 2^53 may be wrong by 1 us, but is twice as long as any burst.
local buckets, admitted, answer = {}, true, {}
for i, key in ipairs(KEYS) do
  local at = 7 * (i - 1)
  local interval = ARGV[at + 2]
  local burst_us, burst_ns = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local cost_us, cost_ns = tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  local us, ns, changed = 0, 0, false
  local value = redis.call('GET', key)
  if value then
    local tat_us, tat_ns, counted_by = string.match(value, '^(%d+) (%d+) (%d+)$')
    tat_us = tonumber(tat_us)
    if tat_us >= now then
      us, ns = tat_us - now, tonumber(tat_ns)
      if counted_by ~= interval then
        -- Carry the same number of units over to another quota. Six roundings, each by less than 1 part in 2^53, are
        -- covered by 8 parts. Then round up to whole us. Times above 136 years are cut.
        us = (us + ns / 1000) * (tonumber(interval) / tonumber(counted_by)) * (1 + 2 ^ -50)
        us, ns, changed = math.min(math.ceil(us), 4300000000000000), 0, true
      end
    end
  end
  local sum_us, sum_ns = us + cost_us, ns + cost_ns
  if sum_ns >= 1000 then
    sum_us, sum_ns = sum_us + 1, sum_ns - 1000
  end
  local is_free = cost_us == 0 and cost_ns == 0
  local fits = ARGV[at + 7] == '0'
    and (is_free or sum_us < burst_us or (sum_us == burst_us and sum_ns <= burst_ns))
  if not fits and ARGV[at + 1] == '1' then
    admitted = false
  end
  buckets[i] = { us, ns, changed, fits and not is_free, sum_us, sum_ns, interval, fits }
end
for i, key in ipairs(KEYS) do
  local us, ns, changed, is_charged, sum_us, sum_ns, interval, fits = unpack(buckets[i])
  if admitted and is_charged then
    us, ns, changed = sum_us, sum_ns, true
  end
  local leased, at = 0, 7 * #KEYS + 4 * (i - 1)
  local most = admitted and fits and tonumber(ARGV[at + 1]) or 0
  if most > 0 then
    -- Charge the leased units as if they were used at the end of the lease. Lease at most a quarter of what is left, so
    -- that no rounding matters.
    local hold_us, unit_us, unit_ns = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
    local from_us, from_ns = us, ns
    if us < hold_us then
      from_us, from_ns = hold_us, 0
    end
    local burst_us = tonumber(ARGV[7 * (i - 1) + 3])
    leased = math.min(most, math.floor((burst_us - from_us) / (unit_us + unit_ns / 1000) / 4))
    if leased >= 2 then
      ns = from_ns + leased * unit_ns
      us, ns, changed = from_us + leased * unit_us + math.floor(ns / 1000), ns % 1000, true
    else
      leased = 0
    end
  end
  if changed then
    redis.call('SET', key, string.format('%.0f %.0f %s', now + us, ns, interval))
    -- Expire when the bucket is full or later. An absolute time does not depend on when Redis starts to count.
    redis.call('PEXPIREAT', key, string.format('%.0f', math.ceil((now + us + 1) / 1000)))
  end
  answer[3 * i - 2], answer[3 * i - 1], answer[3 * i] = fits and 1 + leased or 0, us, ns
end
answer[#answer + 1] = now
return answer
