-- Charges or refunds one key of a set of buckets, by the rules of key_table.rs.
-- KEYS: the set. ARGV: 1 for a refund, or else 0; the hash of the key; interval in ns; and the other arguments of `charge`
-- (bucket.lua) or `refund` (history.lua).
-- A charge returns 1 if it fits, or else 0; the time until the bucket is full, in us and ns; with refunds the history of the
-- bucket in three numbers; and the time.
--
-- A set is the text "interval us ns", where the time is the latest theoretical arrival time of the keys that were replaced, and
-- ";hash us ns" for each bucket that is not full, with its history. The last two numbers are the theoretical arrival time.
local WAYS = 8
local is_refund, hash, interval = ARGV[1] == '1', ARGV[2], ARGV[3]
local buckets, replaced_us, replaced_ns, known, is_changed = {}, 0, 0, nil, false

local function is_less(us, ns, than_us, than_ns)
  return us < than_us or (us == than_us and ns < than_ns)
end

local value = redis.call('GET', KEYS[1])
if value then
  local counted_by, tat_us, tat_ns = string.match(value, '^(%d+) (%d+) (%d+)')
  is_changed = counted_by ~= interval
  local function until_full(us, ns)
    us, ns = tonumber(us) - now, tonumber(ns)
    if us >= 0 and is_changed then
      us, ns = carry_over(us, ns, counted_by, interval)
    end
    return us, ns
  end
  replaced_us, replaced_ns = until_full(tat_us, tat_ns)
  for of, us, ns, history in string.gmatch(value, ';(%d+) (%d+) (%d+)([^;]*)') do
    us, ns = until_full(us, ns)
    if us >= 0 then
      if is_changed or history == '' then
        history = has_refunds and created() or ''
      end
      table.insert(buckets, { hash = of, us = us, ns = ns, history = history })
      if of == hash then
        known = buckets[#buckets]
      end
    end
  end
end

if is_refund and (is_changed or not known) then
  -- After a change of quota the charge has no defined value.
  return {}
end
if is_refund then
  -- The function takes and returns a theoretical arrival time.
  local us, ns, history = refund(now + known.us, known.ns, known.history, 4)
  if us then
    us = us - now
    -- A replaced key must find as many used units when it returns.
    if is_less(us, ns, replaced_us, replaced_ns) then
      us, ns = replaced_us, replaced_ns
    end
    if is_less(us, ns, known.us, known.ns) then
      known.us, known.ns = us, ns
    end
    known.history, is_changed = history, true
  end
end

local answer = {}
if not is_refund then
  local bucket, least_used = known, nil
  local new = has_refunds and created() or ''
  if not bucket and #buckets < WAYS then
    bucket = { us = 0, ns = 0, history = new }
  elseif not bucket then
    for _, other in ipairs(buckets) do
      if not least_used or is_less(other.us, other.ns, least_used.us, least_used.ns) then
        least_used = other
      end
    end
    bucket = { us = least_used.us, ns = least_used.ns, history = new }
  end
  local fits, is_charged, us, ns = charge(bucket.us, bucket.ns, 3)
  if is_charged then
    if least_used then
      if is_less(replaced_us, replaced_ns, least_used.us, least_used.ns) then
        replaced_us, replaced_ns = least_used.us, least_used.ns
      end
      least_used.hash, least_used.history = hash, bucket.history
      bucket = least_used
    elseif not known then
      bucket.hash = hash
      table.insert(buckets, bucket)
    end
    bucket.us, bucket.ns, is_changed = us, ns, true
  end
  answer = { fits and 1 or 0, bucket.us, bucket.ns }
  if has_refunds then
    for _, number in ipairs({ refunds_of(bucket.history) }) do
      table.insert(answer, number)
    end
  end
  table.insert(answer, now)
end

if is_changed and #buckets > 0 then
  -- Full buckets need no place.
  local last_us, text = 0, {}
  table.insert(text, string.format('%s %.0f %.0f', interval, now + math.max(replaced_us, 0), replaced_ns))
  for _, of in ipairs(buckets) do
    last_us = math.max(last_us, of.us)
    table.insert(text, string.format(';%s %.0f %.0f%s', of.hash, now + of.us, of.ns, of.history))
  end
  store(KEYS[1], table.concat(text), now + last_us)
end
return answer
