-- Refunds the charge of one bucket.
-- KEYS: the bucket. ARGV: interval in ns, and the seven arguments of `refund` (history.lua).
local value = redis.call('GET', KEYS[1])
if value then
  local tat_us, tat_ns, counted_by, stored = string.match(value, '^(%d+) (%d+) (%d+)(.*)$')
  -- After a change of quota the charge has no defined value.
  if counted_by == ARGV[1] then
    local us, ns, history = refund(tonumber(tat_us), tonumber(tat_ns), stored, 2)
    -- If this time has passed, the bucket is full, and the key expires immediately.
    if us then
      store(KEYS[1], string.format('%.0f %.0f %s%s', us, ns, counted_by, history), us)
    end
  end
end
