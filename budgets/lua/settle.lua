-- Turn holds into usage and hand the usage records to the ledger, each once.
--
-- Calls that end at the same moment come together; what a counter says is written once for all of
-- them. Calls of a group were counted on the same counters. Where all of them have the hold that
-- whoever admitted them knows of, the group is booked by its sums, which costs as much as a single
-- call but for the records. Else its calls are booked one after the other, each as if it had come
-- alone.
--
-- KEYS[1]     open holds, scored by deadline (ms)
-- KEYS[2]     stream of usage records waiting for the ledger
-- KEYS[3]     number of records handed to the ledger
-- KEYS[4]     requests that must stop
-- KEYS[5..]   the holds of all calls, in the order of the groups; then of each group the counters that
--             these were placed on
-- ARGV[1]     numbers
-- ARGV[2..]   of each group one: numbers. Then of each of its calls six: request id; how it ends,
--             settle, or sweep if its owner is gone, or void if it was never answered; what is
--             known of it, JSON; how it ended, JSON; how its hold begins, which is all that tells
--             what is held for it, or empty for unknown; numbers.
--
-- Numbers are little-endian doubles. Those of all: how many calls there are; s for which the mark of
-- an end is kept, and that of a void. Those of a group: how many calls it has; how many counters; two
-- for each of these: kind (0 budget, 1 rate, 2 leases), s since 1970 at which a budget's counter may
-- go, -1 for never. Then, unless a call has to be looked at alone, for each second of admission: s
-- since 1970; what the calls of that second used of each counter; what is held for them on each.
-- Those of a call: ms since 1970 at which it was admitted; the amount used of each counter.
--
-- The record is a stream entry of which the first field is its kind, with the ms since 1970 at which
-- the call ended; the others are call and end. The kind is usage, late when the hold was gone, or
-- adjustment when the sweep had booked the call: then the field first is the end as the sweep had
-- told it, and the record stands for the difference.
--
-- Returns of each call the kind of its record. With nothing but the mark written: void. With
-- nothing written: ended when it had ended before, running when the sweep came
-- too early.
--
-- The first end counts, whatever a repeat says; a sweep gives way to the owner.

local BUDGET, RATE = 0, 1
-- How many arguments a call has, and which of them they are.
local ARGUMENTS, MODE, FACTS, ENDING, HELD, NUMBERS = 6, 1, 2, 3, 4, 5
local OF_GROUP = 2
local RECORDS = {held = 'usage', swept = 'adjustment', missing = 'late'}

local ask = redis.call

local time = ask('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function numbers(packed)
  local found = {struct.unpack('<' .. string.rep('d', #packed / 8), packed)}
  -- Behind them stands where reading ended.
  found[#found] = nil
  return found
end

local calls, seconds_of_mark, seconds_of_void = struct.unpack('<ddd', ARGV[1])
local found = ask('MGET', unpack(KEYS, 5, 4 + calls))

-- By name: what is added to a counter, and the ends of calls that were booked alone. Then what is
-- done in the end, in order.
local counters, ends = {}, {}
local changed, ended, records = {}, {}, {}

-- A call leaves what is kept of running ones.
local function leave(counter, id)
  counter.left = counter.left or {}
  counter.left[#counter.left + 1] = id
end

-- Correct what the second of a rate has in which the call came.
local function correct(counter, second, difference)
  counter.seconds = counter.seconds or {}
  local known = counter.seconds[second]
  if known == nil then
    local found = ask('HMGET', counter.key, second, 'sum')
    known = tonumber(found[1]) or false
    counter.sum = counter.sum or tonumber(found[2] or 0)
  end
  if known then
    -- A second that is gone has left the window; one that never was counts nothing.
    local after = math.max(0, known + difference)
    counter.sum, known = counter.sum + after - known, after
  end
  counter.seconds[second] = known
end

-- Book all calls of a group by their sums; false, with nothing changed, if one has not the hold that is known of.
local function book_as_one(group)
  if #group.told == group.sums then
    return false
  end
  for i = 0, group.count - 1 do
    local text, begins = found[group.hold + i - 4], ARGV[group.argument + ARGUMENTS * i + HELD]
    if not text or string.find(text, begins, 1, true) ~= 1 then
      return false
    end
  end
  local size = #group.counters
  for at = group.sums + 1, #group.told, 1 + 2 * size do
    for i = 1, size do
      local counter, used, held = group.counters[i], group.told[at + i], group.told[at + size + i]
      if counter.kind == BUDGET then
        counter.used, counter.held = counter.used + used, counter.held - held
      elseif counter.kind == RATE and used ~= held then
        correct(counter, group.told[at], used - held)
      end
    end
  end
  for argument = group.argument, group.argument + ARGUMENTS * (group.count - 1), ARGUMENTS do
    for i = 1, size do
      local counter = group.counters[i]
      if counter.kind ~= BUDGET and counter.kind ~= RATE then
        leave(counter, ARGV[argument])
      end
    end
    ended[#ended + 1] = ARGV[argument]
    records[#records + 1] = {'usage', argument}
  end
  return true
end

-- Book one call of a group; returns the kind of its record.
local function book(group, at, argument)
  local key = KEYS[at]
  local hold = ends[key] or read_hold(found[at - 4], key)
  local state, mode, id = hold.state, ARGV[argument + MODE], ARGV[argument]
  if state == 'settled' or state == 'void' or (state == 'swept' and mode == 'sweep') then
    return 'ended'
  end
  if mode == 'sweep' and (state ~= 'held' or now < tonumber(ask('ZSCORE', KEYS[1], id) or 0)) then
    return 'running'
  end

  local booked, terms = {}, numbers(ARGV[argument + NUMBERS])
  for figure in string.gmatch(hold.amounts, '%S+') do
    table.insert(booked, tonumber(figure))
  end
  -- Else the reserve whose answer was lost never came, and the mark keeps it out.
  if mode ~= 'void' or state ~= 'missing' then
    local second = math.floor(terms[1] / 1000)
    for i, counter in ipairs(group.counters) do
      local before, amount = booked[i] or 0, terms[1 + i]
      if counter.kind == BUDGET then
        if state == 'held' then
          counter.used, counter.held = counter.used + amount, counter.held - before
        else
          counter.used = counter.used + amount - before
        end
      elseif counter.kind == RATE then
        if amount ~= before and state ~= 'missing' then
          correct(counter, second, amount - before)
        end
      else
        leave(counter, id)
      end
    end
  end

  if mode == 'sweep' then
    local amounts = {}
    for i = 1, #group.counters do
      amounts[i] = string.format('%d', terms[1 + i])
    end
    ends[key] = {state = 'swept', amounts = table.concat(amounts, ' '), ending = ARGV[argument + ENDING]}
  else
    ends[key] = {state = mode == 'void' and 'void' or 'settled', amounts = ''}
  end
  ended[#ended + 1] = id
  if mode == 'void' and state ~= 'swept' then
    return 'void'
  end
  records[#records + 1] = {RECORDS[state], argument, state == 'swept' and hold.ending}
  return RECORDS[state]
end

local groups, repeats = {}, false
do
  local hold, key, argument, seen = 5, 5 + calls, 2, {}
  while ARGV[argument] do
    local told = numbers(ARGV[argument])
    local count = told[1]
    -- Of its first call; the others stand behind it.
    local group = {
      told = told, count = count, sums = OF_GROUP + 2 * told[2], counters = {}, hold = hold, argument = argument + 1,
    }
    for i = 1, told[2] do
      local name = KEYS[key]
      local counter = counters[name]
      if not counter then
        counter = {
          key = name, kind = told[OF_GROUP + 2 * i - 1], expires = told[OF_GROUP + 2 * i],
          used = 0, held = 0, sum = false, seconds = false, left = false,
        }
        counters[name] = counter
        changed[#changed + 1] = counter
      end
      group.counters[i], key = counter, key + 1
    end
    for i = hold, hold + count - 1 do
      local name = KEYS[i]
      repeats, seen[name] = repeats or seen[name], true
    end
    hold, argument = hold + count, argument + 1 + ARGUMENTS * count
    table.insert(groups, group)
  end
end

local answers, settled = {}, {}
for _, group in ipairs(groups) do
  local as_one = not repeats and book_as_one(group)
  if as_one then
    table.insert(settled, group)
  end
  for i = 0, group.count - 1 do
    table.insert(answers, as_one and 'usage' or book(group, group.hold + i, group.argument + ARGUMENTS * i))
  end
end

-- From here on all is written and nothing read.
for i = 1, #changed do
  local counter = changed[i]
  if counter.kind == BUDGET then
    local used = counter.used ~= 0 and ask('HINCRBY', counter.key, 'used', counter.used)
    local held = counter.held ~= 0 and ask('HINCRBY', counter.key, 'held', counter.held)
    if counter.expires >= 0 and (used == counter.used or (held or 0) < 0) then
      -- It was new, or may have been.
      ask('EXPIREAT', counter.key, counter.expires)
    end
  elseif counter.seconds then
    local fields = {'sum', counter.sum}
    for second, charged in pairs(counter.seconds) do
      if charged then
        table.insert(fields, second)
        table.insert(fields, charged)
      end
    end
    if #fields > 2 then
      ask('HSET', counter.key, unpack(fields))
    end
  elseif counter.left then
    ask('ZREM', counter.key, unpack(counter.left))
  end
end
if #ended > 0 then
  ask('ZREM', KEYS[1], unpack(ended))
  ask('HDEL', KEYS[4], unpack(ended))
end
for _, group in ipairs(settled) do
  for key = group.hold, group.hold + group.count - 1 do
    ask('SET', KEYS[key], 'settled', 'EX', seconds_of_mark)
  end
end
for key, mark in pairs(ends) do
  write_mark(key, mark, mark.state == 'void' and seconds_of_void or seconds_of_mark)
end
if #records > 0 then
  ask('INCRBY', KEYS[3], #records)
end
-- As text: for each record Lua would write the number anew.
local at = string.format('%.0f', now)
for i = 1, #records do
  local kind, argument, first = unpack(records[i])
  local facts, ending = ARGV[argument + FACTS], ARGV[argument + ENDING]
  if first then
    ask('XADD', KEYS[2], '*', kind, at, 'call', facts, 'end', ending, 'first', first)
  else
    ask('XADD', KEYS[2], '*', kind, at, 'call', facts, 'end', ending)
  end
end
return answers
