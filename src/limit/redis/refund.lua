-- Refunds the part of charges that has not refilled yet. A first line that sets `now`, in whole microseconds, is
-- prepended (gcra.rs).
-- KEYS: one per bucket. ARGV, five per bucket: interval in ns, cost x interval in us and ns, and the time at which the
-- bucket is full if no other charge is made, in us and ns.
for i, key in ipairs(KEYS) do
  local at = 5 * (i - 1)
  local cost_us, cost_ns = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local left_us, left_ns = tonumber(ARGV[at + 4]) - now, tonumber(ARGV[at + 5])
  if left_us < cost_us or (left_us == cost_us and left_ns < cost_ns) then
    cost_us, cost_ns = left_us, left_ns
  end
  local value = redis.call('GET', key)
  if value and (cost_us > 0 or (cost_us == 0 and cost_ns > 0)) then
    local us, ns, counted_by = string.match(value, '^(%d+) (%d+) (%d+)$')
    -- Refund nothing after a change of quota: the charge has no defined value under another quota.
    if counted_by == ARGV[at + 1] then
      us, ns = us - cost_us, ns - cost_ns
      if ns < 0 then
        us, ns = us - 1, ns + 1000
      end
      -- If this time has passed, the bucket is full, and the key expires immediately.
      redis.call('SET', key, string.format('%.0f %.0f %s', us, ns, counted_by))
      redis.call('PEXPIREAT', key, string.format('%.0f', math.ceil((us + 1) / 1000)))
    end
  end
end
