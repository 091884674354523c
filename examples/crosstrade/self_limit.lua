-- `self_limit.rs` for several replicas: counts an alert by the clock of Redis, unless the limit of its id is reached.
-- KEYS: the log of the id, and the ids of the subject. ARGV: count, window in us, the maximum number of ids, the id.
-- Returns 0 and the time of the alert in the log, or 1 (over the limit) or 2 (too many ids) and how long to wait, in us.
--
-- A log is a list of the times of accepted alerts, oldest first. The log and its id expire when the largest window of the id
-- has passed since the last alert.
local count, window, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now))
local ends = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[4]) or nil)
if not ends and redis.call('ZCARD', KEYS[2]) >= most then
  local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
  return { 2, tonumber(first[2]) - now }
end
local last = tonumber(redis.call('LINDEX', KEYS[1], -1) or nil)
local nth_last = tonumber(redis.call('LINDEX', KEYS[1], -count) or nil)
local is_over = nth_last and nth_last + window > now
if not is_over then
  -- One per microsecond, so that each time is unique.
  last = math.max(now, (last or 0) + 1)
  redis.call('RPUSH', KEYS[1], string.format('%.0f', last))
  redis.call('LTRIM', KEYS[1], -1000, -1)
end
-- A rejected alert widens the window too.
ends = math.max(ends or 0, last + window)
redis.call('ZADD', KEYS[2], string.format('%.0f', ends), ARGV[4])
local longest = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', math.ceil(ends / 1000)))
redis.call('PEXPIREAT', KEYS[2], string.format('%.0f', math.ceil(tonumber(longest[2]) / 1000)))
if is_over then
  return { 1, nth_last + window - now }
end
return { 0, last }
