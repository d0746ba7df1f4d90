-- Put a running call's hold back that Redis has lost.
--
-- KEYS[1]     this request's hold
-- KEYS[2]     open holds, scored by deadline (ms)
-- KEYS[3..]   the counters the hold was placed on
-- ARGV[1]     request id
-- ARGV[2]     what is known of the call, JSON
-- ARGV[3]     the terms, JSON:
--             lease_ms      how long the hold lasts without a heartbeat
--             cap           output cap
--             gpu_ms        GPU time granted, 0 if none was asked for
--             admitted_ms   since 1970, when the call was admitted
--             output        tokens delivered so far
--             phase         reserved, or started once the upstream was called
--             counters      one list for each counter: kind (budget, rate, leases); amount held;
--                           s since 1970 at which a budget's counter may go, or false for never
--
-- Returns 1 when restored now; 0, with nothing written, when there is a hold or
-- the mark of one that has ended.
--
-- It asks no limit: the call was admitted and runs. A repeat returns 0.

if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
local terms = cjson.decode(ARGV[3])
local time = redis.call('TIME')
local second = tonumber(time[1])
local deadline = second * 1000 + math.floor(time[2] / 1000) + terms.lease_ms
local admitted = math.floor(terms.admitted_ms / 1000)

local function integer(number)
  return string.format('%.0f', number)
end

local amounts = {}
for i, fields in ipairs(terms.counters) do
  local key, kind, held, expires = KEYS[2 + i], fields[1], integer(fields[2]), fields[3]
  amounts[i] = held
  if kind == 'budget' then
    local new = redis.call('EXISTS', key) == 0
    redis.call('HINCRBY', key, 'held', held)
    if new and expires then
      redis.call('EXPIREAT', key, expires)
    end
  elseif kind == 'rate' then
    if admitted + 61 > second then
      redis.call('HINCRBY', key, integer(admitted), held)
      -- So that the next reserve adds up all seconds again.
      redis.call('HDEL', key, 'oldest')
      redis.call('EXPIRE', key, 122)
    end
  else
    redis.call('ZADD', key, deadline, ARGV[1])
  end
end
write_hold(KEYS[1], {
  amounts = table.concat(amounts, ' '), cap = terms.cap, capped = 0, gpu = terms.gpu_ms, admitted = terms.admitted_ms,
  output = terms.output, phase = terms.phase, call = ARGV[2],
})
redis.call('ZADD', KEYS[2], deadline, ARGV[1])
return 1
