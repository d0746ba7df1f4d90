-- Set room aside for calls, for each on every counter it is counted on or on none.
--
-- Calls that come at the same moment come together; what a counter says is read once and written
-- once for all of them. Calls of a group have the same caller and the same counters. Where there
-- is room for all that a group wishes, it is admitted as one, which costs as much as a single call
-- but for the holds. Else its calls are decided one after the other, each as if it had come alone.
--
-- KEYS[1]     open holds, scored by deadline (ms)
-- KEYS[2]     generations
-- KEYS[3]     epoch of the counters
-- KEYS[4]     number of records handed to the ledger
-- KEYS[5]     number of records the ledger has taken
-- KEYS[6]     the latest time seen (ms)
-- KEYS[7..]   the holds of all calls, in the order of the groups; then all their counters, each once
-- ARGV[1]     the epoch that the counters must have
-- ARGV[2]     numbers
-- ARGV[3..]   of each group two: the subject of the tenant among the generations; numbers. Then of
--             each of its calls four: request id; what is known of it, JSON, kept in the hold for
--             whoever settles it; what its hold says is granted if all that it wishes is; numbers.
--
-- Numbers are little-endian doubles; what is missing is -1.
-- Those of all: the time that the caller takes it to be here, ms, and by how much it may be wrong;
-- the latest time at which it was told that a call was admitted, ms; records that may wait for the
-- ledger; how many calls there are, and how many counters; then two for each of these: kind (0 budget,
-- 1 rate, 2 leases); s since 1970 at which it may go, negative if each call puts that off.
-- Those of a group: how many calls it has; generations of the tenant and the platform in the
-- caller's snapshot; ms since 1970 at which the key expires; ms a hold lasts without a
-- heartbeat, -1 to only look; from when to when, ms, its counters and limits are these; how many
-- charges a call has; of each of these what it comes to for all calls together, and all that they
-- wish; which counters it has, from 1 on; then three for each of these:
--             the limit beyond which it refuses, and that beyond which calls are decided alone,
--             because it refuses or only says so; which of the charges of a call is its, from 1 on
-- Those of a call:
--             output tokens wished for, and those with which the call is still of use; ms of
--             GPU time wished for, and those; then five for each charge: whole, rest, rate, per and
--             GPU rate of whole + ceil((rest + output * rate + gpu * GPU rate) / per)
--
-- Returns of each group {status, request id of the first, now in ms, figures, the epoch there is or
-- empty} if the same came of all its calls, and all that are held are granted what they wish. Else
-- of each of them, in a list of these, {status, request id, now in ms, output cap, the counter that
-- capped it or 0, {the counters that refused it}, figures, ms of GPU time granted}.
-- The figures are used, held and wait in ms of each counter, as little-endian integers of 8 bytes;
-- they are empty when the counters were not looked at.
-- The status is held; or, with nothing written: seen (only looked), refused, epoch,
-- stale, expired, moved (a period or limit is not the present one), backlog, settled, skew (the caller's
-- guess at the time is too far off), clock (the time went back), lost. Of a rate
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
local BUDGET, RATE, LEASES = 0, 1, 2
local OF_ALL, OF_GROUP, OF_LIMIT, OF_CALL, OF_CHARGE = 6, 8, 3, 4, 5
-- How many arguments a call has.
local ARGUMENTS = 4

local ask, fmod, min = redis.call, math.fmod, math.min

local time = ask('TIME')
local second = tonumber(time[1])
local now = second * 1000 + math.floor(tonumber(time[2]) / 1000)

-- Read as one value of 8 bytes after the other: decoding JSON costs more than all the rest.
local function numbers(packed)
  local found = {struct.unpack('<' .. string.rep('d', #packed / 8), packed)}
  -- Behind them stands where reading ended.
  found[#found] = nil
  return found
end

-- Of the seconds of a rate, add up those in the window and list the others.
local function add_up(counter)
  local sum, first, seconds, old = 0, nil, {}, {}
  local fields = ask('HGETALL', counter.key)
  if counter.changed then
    -- What calls that came together with this one were charged is not written yet.
    table.insert(fields, second)
    table.insert(fields, counter.present)
  end
  for n = 1, #fields, 2 do
    local start = tonumber(fields[n])
    if start and start + WINDOW <= second then
      table.insert(old, fields[n])
    elseif start then
      sum = sum - (seconds[start] or 0) + fields[n + 1]
      seconds[start] = tonumber(fields[n + 1])
      first = min(first or start, start)
    end
  end
  counter.used, counter.oldest, counter.moved, counter.seconds, counter.old = sum, first, true, seconds, old
end

-- A counter as Redis has it, with all it will mostly have, so that Lua makes room for it once.
local function read(key, kind, expires)
  if kind == BUDGET then
    local known = ask('HMGET', key, 'used', 'held')
    return {
      key = key, kind = kind, expires = expires, used = tonumber(known[1] or 0), held = tonumber(known[2] or 0),
      new = not known[1] and not known[2], changed = false, more = 0,
    }
  elseif kind == RATE then
    local known = ask('HMGET', key, 'sum', 'oldest', second)
    local counter = {
      key = key, kind = kind, used = tonumber(known[1] or 0), held = 0, oldest = tonumber(known[2]),
      present = tonumber(known[3] or 0), new = not known[3], changed = false,
    }
    if not counter.oldest or counter.oldest + WINDOW <= second then
      add_up(counter)
    end
    return counter
  end
  return {key = key, kind = kind, used = ask('ZCOUNT', key, '(' .. now, '+inf'), held = 0, changed = false, joined = false}
end

-- How long until enough has left the window of a rate for a charge to fit; -1: it never will.
local function wait_for(counter, charge, limit)
  add_up(counter)
  local starts = {}
  for start in pairs(counter.seconds) do
    table.insert(starts, start)
  end
  table.sort(starts)
  local used = counter.used
  for _, start in ipairs(starts) do
    used = used - counter.seconds[start]
    if used + charge <= limit then
      return (start + WINDOW) * 1000 - now
    end
  end
  return -1
end

local about = numbers(ARGV[2])
local guess, tolerance, admitted_before, most_waiting, calls, size = unpack(about, 1, OF_ALL)
-- The epoch and other single figures, and the holds that are there already.
local found = ask('MGET', unpack(KEYS, 3, 6 + calls))
local epoch, backlog = found[1], tonumber(found[2] or 0) - tonumber(found[3] or 0)
local latest = tonumber(found[4] or 0)

local counters = {}
for i = 1, size do
  local at = OF_ALL + 2 * (i - 1)
  counters[i] = read(KEYS[6 + calls + i], about[at + 1], about[at + 2])
end

local groups = {}
-- Whether a call may have been decided before: then each is looked at alone. Nearly never.
local repeats = false
do
  local hold, argument, seen = 7, 3, {}
  while ARGV[argument] do
    local told = numbers(ARGV[argument + 1])
    local count, terms = told[1], OF_GROUP + told[OF_GROUP]
    -- Which counters it has stands behind ``terms``, and what is told of these behind ``limits``. Of its
    -- first call are ``hold`` and ``argument``; the others stand behind it.
    local of_group = (#told - terms) / (1 + OF_LIMIT)
    table.insert(groups, {
      tenant = ARGV[argument], told = told, count = count, terms = terms, size = of_group, limits = terms + of_group,
      hold = hold, argument = argument + 2,
    })
    for i = hold, hold + count - 1 do
      local name = KEYS[i]
      repeats, seen[name] = repeats or found[i - 2] or seen[name], true
    end
    hold, argument = hold + count, argument + 2 + ARGUMENTS * count
  end
end

-- What is written in the end: the holds of calls that were admitted, with their keys, and when these
-- end. And by the name of its hold each that was decided alone.
local holds, ids, admitted = {}, {}, {}

-- Why no call of a group can be admitted, whatever the counters say; nil if one may be.
local function barred(group)
  -- Leases and windows mean nothing on a clock that went back; a second is an ordinary correction.
  if math.abs(now - guess) > tolerance then
    return 'skew'
  elseif now + 1000 < latest then
    return 'clock'
  elseif epoch ~= ARGV[1] then
    return 'epoch'
  elseif latest < admitted_before then
    ask('DEL', KEYS[3])
    epoch = false
    return 'lost'
  end
  local told, generations = group.told, ask('ZMSCORE', KEYS[2], group.tenant, 'platform')
  if tonumber(generations[1] or -1) ~= told[2] or tonumber(generations[2] or -1) ~= told[3] then
    return 'stale'
  elseif told[4] >= 0 and now >= told[4] then
    return 'expired'
  elseif now < told[6] or now >= told[7] then
    return 'moved'
  elseif group.told[5] < 0 then
    return 'seen'
  elseif backlog >= most_waiting then
    return 'backlog'
  end
end

-- Used, held and wait of each counter of a group; ``waits`` of those whose wait is another one.
local function figures(group, waits)
  local packed, told, terms = {}, group.told, group.terms
  for i = 1, group.size do
    local counter = counters[told[terms + i]]
    local wait = waits and waits[i]
    if not wait then
      wait = counter.oldest and (counter.oldest + WINDOW) * 1000 - now or 0
    end
    packed[3 * i - 2], packed[3 * i - 1], packed[3 * i] = counter.used, counter.held, wait
  end
  return struct.pack('<' .. string.rep('i8', #packed), unpack(packed))
end

-- Count so much on a counter, of calls that are admitted.
local function count(counter, charge)
  counter.changed = true
  if counter.kind == BUDGET then
    counter.held, counter.more = counter.held + charge, counter.more + charge
  elseif counter.kind == RATE then
    counter.used, counter.present = counter.used + charge, counter.present + charge
    if not counter.oldest or second < counter.oldest then
      counter.oldest, counter.moved = second, true
    end
  else
    counter.used, counter.joined = counter.used + charge, counter.joined or {}
  end
end

-- A call that is admitted joins what is ordered by deadline.
local function join(members, deadline, id)
  local size = #members
  members[size + 1], members[size + 2] = deadline, id
end

-- Write down the hold of a call that is admitted now.
local as_admitted = told_text(now, 0, 'silent')
local function hold(key, granted, facts)
  local size = #holds
  holds[size + 1], holds[size + 2] = key, held_text(granted, as_admitted, facts)
end

-- Admit all calls of a group with all that they wish; false, with nothing changed, where that exceeds a limit.
local function admit_as_one(group)
  local told, terms, limits = group.told, group.terms, group.limits
  for i = 1, group.size do
    local counter, at = counters[told[terms + i]], limits + OF_LIMIT * (i - 1)
    if told[OF_GROUP + told[at + 3]] > told[at + 2] - counter.used - counter.held then
      return false
    end
  end
  local deadline, last = now + told[5], group.argument + ARGUMENTS * (group.count - 1)
  for i = 1, group.size do
    local counter = counters[told[terms + i]]
    count(counter, told[OF_GROUP + told[limits + OF_LIMIT * i]])
    if counter.joined then
      for argument = group.argument, last, ARGUMENTS do
        join(counter.joined, deadline, ARGV[argument])
      end
    end
  end
  local key = group.hold
  for argument = group.argument, last, ARGUMENTS do
    join(ids, deadline, ARGV[argument])
    hold(KEYS[key], ARGV[argument + 2], ARGV[argument + 1])
    key = key + 1
  end
  return true
end

-- What so much output and GPU time cost by the charge whose terms stand behind ``at``.
local function amount(terms, at, output, gpu)
  local dividend, per = terms[at + 2] + output * terms[at + 3] + gpu * terms[at + 5], terms[at + 4]
  if per == 1 then
    return terms[at + 1] + dividend
  end
  local left = fmod(dividend, per)
  return terms[at + 1] + (dividend - left) / per + (left > 0 and 1 or 0)
end

-- A counter of a group, the limit beyond which it refuses, and which charge of a call is its.
local function counter_of(group, i)
  local at = group.limits + OF_LIMIT * (i - 1)
  return counters[group.told[group.terms + i]], group.told[at + 1], group.told[at + 3]
end

-- The output and GPU time for which there is room, and the counter that capped the output; or
-- false, the counters that refuse, and the waits of those that are rates.
local function room_for(group, terms)
  local output, least, gpu, least_gpu, capped = terms[1], terms[2], terms[3], terms[4], 0
  local refused, waits = {}, {}
  for i = 1, group.size do
    local counter, limit, charge = counter_of(group, i)
    local at = OF_CALL + OF_CHARGE * (charge - 1)
    local room = limit - counter.used - counter.held
    if amount(terms, at, least, least_gpu) > room then
      table.insert(refused, i)
      if counter.kind == RATE then
        waits[i] = wait_for(counter, amount(terms, at, least, least_gpu), limit)
      end
    elseif amount(terms, at, output, gpu) > room then
      local rate, gpu_rate = terms[at + 3], terms[at + 5]
      local dividend = (room - terms[at + 1]) * terms[at + 4] - terms[at + 2]
      if rate > 0 then
        -- The output gives way first: of the time there may be more later, of the output there is not.
        capped = i
        output = least
        local left = dividend - gpu * gpu_rate
        if left >= least * rate then
          output = (left - fmod(left, rate)) / rate
        end
      end
      if amount(terms, at, output, gpu) > room then
        local left = dividend - output * rate
        gpu = (left - fmod(left, gpu_rate)) / gpu_rate
      end
    end
  end
  if #refused > 0 then
    return false, refused, waits
  end
  return output, gpu, capped
end

-- What each charge of a call comes to.
local function amounts_of(terms, output, gpu)
  local amounts = {}
  for at = OF_CALL, #terms - 1, OF_CHARGE do
    table.insert(amounts, amount(terms, at, output, gpu))
  end
  return amounts
end

local function answer(call, status, refused, told, cap, capped, gpu, at)
  return {status, call.id, at or now, cap or 0, capped or 0, refused or {}, told or '', gpu or 0}
end

-- Decide one call of a group; ``bar`` is why none can be admitted.
local function decide(group, call, bar)
  local known = admitted[call.hold]
  if known then
    return answer(call, 'held', {}, figures(group), known.cap, known.capped, known.gpu)
  end
  local before = call.before and read_hold(call.before)
  if before and before.state == 'held' then
    return answer(call, 'held', {}, figures(group), tonumber(before.cap), tonumber(before.capped), tonumber(before.gpu),
      tonumber(before.admitted))
  elseif before then
    return answer(call, 'settled')
  elseif bar then
    return answer(call, bar, bar == 'epoch' and {epoch or ''}, bar == 'seen' and figures(group))
  end

  local terms = call.numbers
  local output, gpu, capped = terms[1], terms[3], 0
  local amounts = amounts_of(terms, output, gpu)
  local fits = true
  for i = 1, group.size do
    local counter, limit, charge = counter_of(group, i)
    if amounts[charge] > limit - counter.used - counter.held then
      fits = false
    end
  end
  if not fits then
    output, gpu, capped = room_for(group, terms)
    if not output then
      return answer(call, 'refused', gpu, figures(group, capped))
    end
    amounts = amounts_of(terms, output, gpu)
  end

  local deadline = now + group.told[5]
  local held = {}
  for i = 1, group.size do
    local counter, _, charge = counter_of(group, i)
    count(counter, amounts[charge])
    if counter.joined then
      join(counter.joined, deadline, call.id)
    end
    -- Lua itself would write fourteen digits of it.
    held[i] = string.format('%d', amounts[charge])
  end
  join(ids, deadline, call.id)
  hold(call.hold, granted_text(table.concat(held, ' '), output, capped, gpu), call.facts)
  admitted[call.hold] = {cap = output, capped = capped, gpu = gpu}
  return answer(call, 'held', {}, figures(group), output, capped, gpu)
end

local answers = {}
for _, group in ipairs(groups) do
  local bar = barred(group)
  if not repeats and (bar or admit_as_one(group)) then
    local told = (not bar or bar == 'seen') and figures(group)
    table.insert(answers, {bar or 'held', ARGV[group.argument], now, told or '', bar == 'epoch' and epoch or ''})
  else
    local each = {}
    for i = 1, group.count do
      local argument = group.argument + ARGUMENTS * (i - 1)
      each[i] = decide(group, {
        hold = KEYS[group.hold + i - 1], id = ARGV[argument], facts = ARGV[argument + 1],
        numbers = numbers(ARGV[argument + 3]), before = found[group.hold + i - 3],
      }, bar)
    end
    table.insert(answers, each)
  end
end

-- From here on all is written and nothing read.
for i = 1, size do
  local counter = counters[i]
  local key, kind = counter.key, counter.changed and counter.kind
  if kind == BUDGET then
    ask('HINCRBY', key, 'held', counter.more)
    local expires = counter.expires
    if expires < -1 or (counter.new and expires >= 0) then
      -- Else once: a counter in use must end with its period all the same.
      ask('EXPIREAT', key, math.abs(expires))
    end
  elseif kind == RATE then
    if counter.old and #counter.old > 0 then
      ask('HDEL', key, unpack(counter.old))
    end
    if counter.moved then
      ask('HSET', key, 'sum', counter.used, second, counter.present, 'oldest', counter.oldest)
    else
      ask('HSET', key, 'sum', counter.used, second, counter.present)
    end
    if counter.new then
      ask('EXPIRE', key, 2 * WINDOW)
    end
  elseif kind == LEASES then
    ask('ZREMRANGEBYSCORE', key, '-inf', now)
    ask('ZADD', key, unpack(counter.joined))
  end
end
if #ids > 0 then
  ask('ZADD', KEYS[1], unpack(ids))
  if now > latest then
    holds[#holds + 1], holds[#holds + 2] = KEYS[6], now
  end
  ask('MSET', unpack(holds))
end
return answers
