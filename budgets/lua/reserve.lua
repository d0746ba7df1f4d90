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
-- ARGV[3]     the epoch that the counters must have
-- ARGV[4]     subject of the tenant among the generations
-- ARGV[5]     numbers, little-endian doubles; what is missing or endless is -1:
--             the time that the caller takes it to be here, ms, and by how much it may be wrong;
--             the latest time at which it was told that a call was admitted, ms;
--             generations of the tenant and the platform in the caller's snapshot; ms since 1970
--             at which the key expires; records that may wait for the ledger; ms the hold lasts
--             without a heartbeat, -1 to only look; output tokens wished for, and those with
--             which the call is still of use; ms of GPU time wished for, and those; then eleven
--             for each counter:
--             kind (0 budget, 1 rate, 2 leases); limit; whether it may refuse (1 or 0); whole,
--             rest, rate, per and GPU rate of the charge
--             whole + ceil((rest + output * rate + gpu * GPU rate) / per); from when to when,
--             ms, a budget has this counter and this limit; s since 1970 at which the counter
--             may go, negative if each call puts that off
--
-- Returns {status, request id, now in ms, output cap, the counter that capped it or 0,
--          {the counters that refused it}, {used, held, wait in ms for each counter},
--          ms of GPU time granted}.
-- The status is held; or, with nothing written: seen (only looked), refused, epoch,
-- stale, expired, moved (a period or limit is not the present one), backlog, settled, skew (the caller's
-- guess at the time is too far off), clock (the time went back), lost. With epoch,
-- the one there is takes the place of those that refused, empty for none. Of a rate
-- the wait is until some room comes back, or, if it refused, enough; -1: never.
--
-- With lost, Redis has an older state than the caller has seen, as after a failover or from
-- a backup. Then the epoch is deleted, so that nothing is admitted until the counters are rebuilt.
--
-- A repeat writes nothing and returns what was decided, and when, with the
-- counters of now, or settled when the call has ended.
--
-- A rate is a hash: for each second since 1970 in which calls came, what they
-- were charged; the sum of all these; and the oldest of the seconds. While that
-- is in the window, so are all, and the sum is what counts: nothing else is
-- read. Without it they are added up again.

-- The whole second in which the oldest call came still counts, so no 60 s ever hold more than the limit.
local WINDOW = 61
local BUDGET, RATE = 0, 1
local BEFORE, EACH = 12, 11

local time = redis.call('TIME')
local second = tonumber(time[1])
local now = second * 1000 + math.floor(tonumber(time[2]) / 1000)

-- Read as one value of 8 bytes after the other: decoding JSON costs more than all the rest.
local terms = {struct.unpack('<' .. string.rep('d', #ARGV[5] / 8), ARGV[5])}
local last = #KEYS - 7
-- Used, held and wait of each counter.
local figures = {}
for i = 1, 3 * last do
  figures[i] = 0
end
-- Of a budget whether it is new; of a rate its oldest second, what the present one has,
-- the seconds in the window and those that have left it.
local new, oldest, present, seconds, old = {}, {}, {}, {}, {}

-- What output tokens and GPU time cost the counter whose terms stand behind ``at``.
local function amount(at, output, gpu)
  local dividend, per = terms[at + 5] + output * terms[at + 6] + gpu * terms[at + 8], terms[at + 7]
  if per == 1 then
    return terms[at + 4] + dividend
  end
  local left = math.fmod(dividend, per)
  return terms[at + 4] + (dividend - left) / per + (left > 0 and 1 or 0)
end

-- Of the seconds of a rate, add up those in the window and list the others.
local function add_up(i)
  local sum, first = 0, nil
  seconds[i], old[i] = {}, {}
  local fields = redis.call('HGETALL', KEYS[7 + i])
  for n = 1, #fields, 2 do
    local start = tonumber(fields[n])
    if start and start + WINDOW <= second then
      table.insert(old[i], fields[n])
    elseif start then
      seconds[i][start] = tonumber(fields[n + 1])
      sum = sum + seconds[i][start]
      first = math.min(first or start, start)
    end
  end
  figures[3 * i - 2], oldest[i] = sum, first
end

local function read(i)
  local key, kind = KEYS[7 + i], terms[BEFORE + EACH * (i - 1) + 1]
  if kind == BUDGET then
    local found = redis.call('HMGET', key, 'used', 'held')
    new[i] = not found[1] and not found[2]
    figures[3 * i - 2], figures[3 * i - 1] = tonumber(found[1] or 0), tonumber(found[2] or 0)
  elseif kind == RATE then
    local found = redis.call('HMGET', key, 'sum', 'oldest', second)
    figures[3 * i - 2], oldest[i], present[i] = tonumber(found[1] or 0), tonumber(found[2]), found[3]
    if not oldest[i] or oldest[i] + WINDOW <= second then
      add_up(i)
    end
    if oldest[i] then
      figures[3 * i] = (oldest[i] + WINDOW) * 1000 - now
    end
  else
    figures[3 * i - 2] = redis.call('ZCOUNT', key, '(' .. now, '+inf')
  end
end

local function read_all()
  for i = 1, last do
    read(i)
  end
end

-- How long until enough has left the window for a charge to fit; -1: it never will.
local function wait_for(i, charge, limit)
  add_up(i)
  local starts = {}
  for start in pairs(seconds[i]) do
    table.insert(starts, start)
  end
  table.sort(starts)
  local used = figures[3 * i - 2]
  for _, start in ipairs(starts) do
    used = used - seconds[i][start]
    if used + charge <= limit then
      return (start + WINDOW) * 1000 - now
    end
  end
  return -1
end

local function answer(status, cap, capped, refused, gpu)
  return {status, ARGV[1], now, cap or 0, capped or 0, refused or {}, figures, gpu or 0}
end

local hold = redis.call('HMGET', KEYS[1], 'state', 'cap', 'capped', 'gpu', 'admitted')
if hold[1] == 'held' then
  read_all()
  now = tonumber(hold[5])
  return answer('held', tonumber(hold[2]), tonumber(hold[3]), {}, tonumber(hold[4]))
elseif hold[1] then
  return answer('settled')
end

-- Leases and windows mean nothing on a clock that went back; a second is an ordinary correction.
local marks = redis.call('MGET', KEYS[3], KEYS[5], KEYS[6], KEYS[7])
local epoch, handed, taken = marks[1], tonumber(marks[2] or 0), tonumber(marks[3] or 0)
local latest = tonumber(marks[4] or 0)
if math.abs(now - terms[1]) > terms[2] then
  return answer('skew')
elseif now + 1000 < latest then
  return answer('clock')
end
if epoch ~= ARGV[3] then
  return answer('epoch', 0, 0, {epoch or ''})
elseif latest < terms[3] then
  redis.call('DEL', KEYS[3])
  return answer('lost')
end
local generations = redis.call('ZMSCORE', KEYS[4], ARGV[4], 'platform')
if tonumber(generations[1] or -1) ~= terms[4] or tonumber(generations[2] or -1) ~= terms[5] then
  return answer('stale')
end
if terms[6] >= 0 and now >= terms[6] then
  return answer('expired')
end
for i = 1, last do
  local at = BEFORE + EACH * (i - 1)
  if terms[at + 1] == BUDGET and (now < terms[at + 9] or (terms[at + 10] >= 0 and now >= terms[at + 10])) then
    return answer('moved')
  end
end
local lease = terms[8]
if lease < 0 then
  read_all()
  return answer('seen')
end
if handed - taken >= terms[7] then
  return answer('backlog')
end

local output, least, capped = terms[9], terms[10], 0
local gpu, least_gpu = terms[11], terms[12]
local refused = {}
for i = 1, last do
  read(i)
  local at = BEFORE + EACH * (i - 1)
  local limit = terms[at + 2]
  if limit >= 0 and terms[at + 3] == 1 then
    local room = limit - figures[3 * i - 2] - figures[3 * i - 1]
    if amount(at, least, least_gpu) > room then
      table.insert(refused, i)
      if terms[at + 1] == RATE then
        figures[3 * i] = wait_for(i, amount(at, least, least_gpu), limit)
      end
    elseif amount(at, output, gpu) > room then
      local rate, gpu_rate = terms[at + 6], terms[at + 8]
      local dividend = (room - terms[at + 4]) * terms[at + 7] - terms[at + 5]
      if rate > 0 then
        -- The output gives way first: of the time there may be more later, of the output there is not.
        capped = i
        output = least
        local left = dividend - gpu * gpu_rate
        if left >= least * rate then
          output = (left - math.fmod(left, rate)) / rate
        end
      end
      if amount(at, output, gpu) > room then
        local left = dividend - output * rate
        gpu = (left - math.fmod(left, gpu_rate)) / gpu_rate
      end
    end
  end
end
if #refused > 0 then
  return answer('refused', 0, 0, refused)
end

local deadline = now + lease
local amounts = {}
for i = 1, last do
  local at, key = BEFORE + EACH * (i - 1), KEYS[7 + i]
  local kind, charge = terms[at + 1], amount(at, output, gpu)
  amounts[i] = string.format('%d', charge)
  if kind == BUDGET then
    figures[3 * i - 1] = redis.call('HINCRBY', key, 'held', amounts[i])
    local expires = terms[at + 11]
    if expires < -1 or (new[i] and expires >= 0) then
      -- Else once: a counter in use must end with its period all the same.
      redis.call('EXPIREAT', key, math.abs(expires))
    end
  elseif kind == RATE then
    if old[i] and #old[i] > 0 then
      redis.call('HDEL', key, unpack(old[i]))
    end
    local sum = figures[3 * i - 2] + charge
    figures[3 * i - 2] = sum
    redis.call('HSET', key, 'sum', sum, 'oldest', math.min(oldest[i] or second, second),
      second, (present[i] or 0) + charge)
    if not present[i] then
      redis.call('EXPIRE', key, 2 * WINDOW)
    end
    if figures[3 * i] == 0 then
      figures[3 * i] = (second + WINDOW) * 1000 - now
    end
  else
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    redis.call('ZADD', key, deadline, ARGV[1])
    figures[3 * i - 2] = figures[3 * i - 2] + 1
  end
end
redis.call('HSET', KEYS[1], 'state', 'held', 'call', ARGV[2], 'cap', output, 'capped', capped,
  'amounts', table.concat(amounts, ' '), 'gpu', gpu, 'admitted', now, 'output', 0, 'phase', '')
redis.call('ZADD', KEYS[2], deadline, ARGV[1])
if now > latest then
  redis.call('SET', KEYS[7], now)
end
return answer('held', output, capped, {}, gpu)
