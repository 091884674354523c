-- Charges all buckets, or none.
-- KEYS: one per bucket. ARGV, seven per bucket: whether its rejection rejects the whole charge (1 or 0), and the six arguments of
-- `charge` (bucket.lua). With lease requests (lease.rs) four more per bucket follow: units, duration in us, and interval in us
-- and ns.
-- Returns three numbers per bucket: 0 if the charge does not fit, or else 1 plus the leased units; and the time until the
-- bucket is full, in us and ns. With refunds three more: the history of the bucket. The last number is the time.
--
-- A bucket is the text "us ns interval", and its history with refunds (history.lua). The first two are the theoretical arrival
-- time, the third is the interval that it is counted by.
local buckets, admitted, answer = {}, true, {}
for i, key in ipairs(KEYS) do
  local at = 7 * (i - 1) + 1
  local interval = ARGV[at + 1]
  local us, ns, changed, history = 0, 0, false, has_refunds and created() or ''
  local value = redis.call('GET', key)
  if value then
    local tat_us, tat_ns, counted_by, stored = string.match(value, '^(%d+) (%d+) (%d+)(.*)$')
    tat_us = tonumber(tat_us)
    if tat_us >= now then
      us, ns = tat_us - now, tonumber(tat_ns)
      if counted_by ~= interval then
        us, ns = carry_over(us, ns, counted_by, interval)
        changed = true
      elseif stored ~= '' then
        history = stored
      end
    end
  end
  local fits, is_charged, sum_us, sum_ns = charge(us, ns, at + 1)
  if not fits and ARGV[at] == '1' then
    admitted = false
  end
  buckets[i] = { us, ns, changed, is_charged, sum_us, sum_ns, interval, fits, history }
end
for i, key in ipairs(KEYS) do
  local us, ns, changed, is_charged, sum_us, sum_ns, interval, fits, history = unpack(buckets[i])
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
    store(key, string.format('%.0f %.0f %s%s', now + us, ns, interval, history), now + us)
  end
  local n = #answer
  answer[n + 1], answer[n + 2], answer[n + 3] = fits and 1 + leased or 0, us, ns
  if has_refunds then
    answer[n + 4], answer[n + 5], answer[n + 6] = refunds_of(history)
  end
end
answer[#answer + 1] = now
return answer
