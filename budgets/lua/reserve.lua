-- Set room aside for one call on every counter it is counted on, or on none.
--
-- KEYS[1]     this request's hold
-- KEYS[2]     open holds, scored by deadline (ms)
-- KEYS[3]     epoch of the counters
-- KEYS[4]     generations
-- KEYS[5]     number of records handed to the ledger
-- KEYS[6]     number of records the ledger has taken
-- KEYS[7]     the latest time seen (ms)
-- KEYS[8..]   the counters
-- ARGV[1]     request id
-- ARGV[2]     what is known of the call, JSON; kept in the hold for whoever settles it
-- ARGV[3]     the terms, JSON; what is missing or endless is false:
--             epoch               the counters must have
--             tenant              subject of the tenant among the generations
--             tenant_generation, platform_generation   of the caller's snapshot
--             expires_ms          since 1970, when the key expires, or false
--             backlog             records that may wait for the ledger
--             lease_ms            how long the hold lasts without a heartbeat; without one, we only look
--             output, least       tokens wished for, and with which the call is still of use
--             counters            one list for each counter:
--                                 kind (budget, rate, leases); limit or false; whether it may refuse;
--                                 whole, rest, rate, per of the charge
--                                 whole + ceil((rest + output * rate) / per); start and end of a
--                                 budget's period, ms, or false; s since 1970 at which its counter
--                                 may go, or false
--
-- Returns {status, request id, now in ms, output cap, the counter that capped it or 0,
--          {the counters that refused it}, {used, held, wait in ms for each counter}}.
-- The status is held; or, with nothing written: seen (only looked), refused, epoch,
-- stale, expired, moved (a period is not the present one), backlog, clock, settled. With epoch,
-- the one there is takes the place of those that refused, empty for none. Of a rate
-- the wait is until some room comes back, or, if it refused, enough; -1: never.
--
-- A repeat writes nothing and returns what was decided with the counters of
-- now, or settled when the call has ended.
--
-- A rate is a hash: for each second since 1970 in which calls came, what they
-- were charged; the sum of all these; and the oldest of the seconds. While that
-- is in the window, so are all, and the sum is what counts: nothing else is
-- read. Without it they are added up again.

-- The whole second in which the oldest call came still counts, so no 60 s ever hold more than the limit.
local WINDOW = 61

local time = redis.call('TIME')
local second = tonumber(time[1])
local now = second * 1000 + math.floor(tonumber(time[2]) / 1000)

local terms = cjson.decode(ARGV[3])
local counters = {}
for i, fields in ipairs(terms.counters) do
  counters[i] = {
    key = KEYS[7 + i], kind = fields[1], limit = fields[2], hard = fields[3],
    whole = fields[4], rest = fields[5], rate = fields[6], per = fields[7],
    starts = fields[8], ends = fields[9], expires = fields[10],
    used = 0, held = 0, wait = 0,
  }
end

local function amount(counter, output)
  local dividend = counter.rest + output * counter.rate
  local left = math.fmod(dividend, counter.per)
  return counter.whole + (dividend - left) / counter.per + (left > 0 and 1 or 0)
end

-- Of the seconds of a rate, add up those in the window and list the others.
local function add_up(counter)
  counter.seconds, counter.old, counter.used, counter.oldest = {}, {}, 0, nil
  local fields = redis.call('HGETALL', counter.key)
  for i = 1, #fields, 2 do
    local start = tonumber(fields[i])
    if start and start + WINDOW <= second then
      table.insert(counter.old, fields[i])
    elseif start then
      counter.seconds[start] = tonumber(fields[i + 1])
      counter.used = counter.used + counter.seconds[start]
      counter.oldest = math.min(counter.oldest or start, start)
    end
  end
end

local function read(counter)
  if counter.kind == 'budget' then
    local figures = redis.call('HMGET', counter.key, 'used', 'held')
    counter.new = not figures[1] and not figures[2]
    counter.used, counter.held = tonumber(figures[1] or 0), tonumber(figures[2] or 0)
  elseif counter.kind == 'rate' then
    local figures = redis.call('HMGET', counter.key, 'sum', 'oldest', second)
    counter.used, counter.oldest, counter.present = tonumber(figures[1]), tonumber(figures[2]), figures[3]
    if not counter.oldest or counter.oldest + WINDOW <= second then
      add_up(counter)
    end
    if counter.oldest then
      counter.wait = (counter.oldest + WINDOW) * 1000 - now
    end
  else
    counter.used = redis.call('ZCOUNT', counter.key, '(' .. now, '+inf')
  end
end

-- How long until enough has left the window for a charge to fit; -1: it never will.
local function wait_for(counter, charge)
  add_up(counter)
  local starts = {}
  for start in pairs(counter.seconds) do
    table.insert(starts, start)
  end
  table.sort(starts)
  local used = counter.used
  for _, start in ipairs(starts) do
    used = used - counter.seconds[start]
    if used + charge <= counter.limit then
      return (start + WINDOW) * 1000 - now
    end
  end
  return -1
end

local function answer(status, cap, capped, refused)
  local figures = {}
  for _, counter in ipairs(counters) do
    table.insert(figures, counter.used)
    table.insert(figures, counter.held)
    table.insert(figures, counter.wait)
  end
  return {status, ARGV[1], now, cap or 0, capped or 0, refused or {}, figures}
end

local hold = redis.call('HMGET', KEYS[1], 'state', 'cap', 'capped')
if hold[1] == 'held' then
  for _, counter in ipairs(counters) do
    read(counter)
  end
  return answer('held', tonumber(hold[2]), tonumber(hold[3]))
elseif hold[1] then
  return answer('settled')
end

-- Leases and windows mean nothing on a clock that went back; a second is an ordinary correction.
local marks = redis.call('MGET', KEYS[3], KEYS[5], KEYS[6], KEYS[7])
local epoch, handed, taken = marks[1], tonumber(marks[2] or 0), tonumber(marks[3] or 0)
if now + 1000 < tonumber(marks[4] or 0) then
  return answer('clock')
end
if epoch ~= terms.epoch then
  return answer('epoch', 0, 0, {epoch or ''})
end
local generations = redis.call('ZMSCORE', KEYS[4], terms.tenant, 'platform')
if tonumber(generations[1] or -1) ~= terms.tenant_generation
  or tonumber(generations[2] or -1) ~= terms.platform_generation then
  return answer('stale')
end
if terms.expires_ms and now >= terms.expires_ms then
  return answer('expired')
end
for _, counter in ipairs(counters) do
  if counter.kind == 'budget' and (now < counter.starts or (counter.ends and now >= counter.ends)) then
    return answer('moved')
  end
end
if not terms.lease_ms then
  for _, counter in ipairs(counters) do
    read(counter)
  end
  return answer('seen')
end
if handed - taken >= terms.backlog then
  return answer('backlog')
end

local output, least, capped = terms.output, terms.least, 0
local refused = {}
for i, counter in ipairs(counters) do
  read(counter)
  if counter.hard and counter.limit then
    local room = counter.limit - counter.used - counter.held
    if amount(counter, least) > room then
      table.insert(refused, i)
      if counter.kind == 'rate' then
        counter.wait = wait_for(counter, amount(counter, least))
      end
    elseif amount(counter, output) > room then
      local dividend = (room - counter.whole) * counter.per - counter.rest
      output = (dividend - math.fmod(dividend, counter.rate)) / counter.rate
      capped = i
    end
  end
end
if #refused > 0 then
  return answer('refused', 0, 0, refused)
end

local deadline = now + terms.lease_ms
local amounts = {}
for i, counter in ipairs(counters) do
  local charge = amount(counter, output)
  amounts[i] = string.format('%.0f', charge)
  if counter.kind == 'budget' then
    redis.call('HINCRBY', counter.key, 'held', charge)
    if counter.new and counter.expires then
      -- Once: a counter in use must end with its period all the same.
      redis.call('EXPIREAT', counter.key, counter.expires)
    end
    counter.held = counter.held + charge
  elseif counter.kind == 'rate' then
    if counter.old and #counter.old > 0 then
      redis.call('HDEL', counter.key, unpack(counter.old))
    end
    counter.used, counter.oldest = counter.used + charge, math.min(counter.oldest or second, second)
    redis.call('HSET', counter.key, 'sum', counter.used, 'oldest', counter.oldest,
      second, (counter.present or 0) + charge)
    if not counter.present then
      redis.call('EXPIRE', counter.key, 2 * WINDOW)
    end
    if counter.wait == 0 then
      counter.wait = (second + WINDOW) * 1000 - now
    end
  else
    redis.call('ZREMRANGEBYSCORE', counter.key, '-inf', now)
    redis.call('ZADD', counter.key, deadline, ARGV[1])
    counter.used = counter.used + 1
  end
end
redis.call('HSET', KEYS[1], 'state', 'held', 'call', ARGV[2], 'cap', output, 'capped', capped,
  'amounts', table.concat(amounts, ' '), 'admitted', now, 'output', 0, 'phase', '')
redis.call('ZADD', KEYS[2], deadline, ARGV[1])
redis.call('SET', KEYS[7], now)
return answer('held', output, capped)
