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
-- KEYS[5..]   of each group the counters that holds were placed on, then the holds of its calls
-- ARGV        of each group one: numbers. Then of each of its calls six: request id; how it ends,
--             settle, or sweep if its owner is gone, or void if it was never answered; what is
--             known of it, JSON; how it ended, JSON; what is held for it on each counter, as the hold
--             has it, or empty for unknown; numbers.
--
-- Numbers are little-endian doubles. Those of a group: how many calls it has; s for which the
-- mark of an end is kept, and that of a void; how many counters; two for each of these: kind
-- (0 budget, 1 rate, 2 leases), s since 1970 at which a budget's counter may go, -1 for never. Then,
-- unless a call has to be looked at alone, for each second of admission: s since 1970; what
-- the calls of that second used of each counter; what is held for them on each.
-- Those of a call: ms since 1970 at which it was admitted; the amount used of each counter.
--
-- The record is a stream entry with the fields request, kind, at (ms), call and
-- end; its kind is usage, late when the hold was gone, or adjustment when the
-- sweep had booked the call: then first is the end as the sweep had told it,
-- and the record stands for the difference.
--
-- Returns of each call the kind of its record. With nothing but the mark written: void. With
-- nothing written: ended when it had ended before, running when the sweep came
-- too early.
--
-- The first end counts, whatever a repeat says; a sweep gives way to the owner.

local BUDGET, RATE = 0, 1
-- How many arguments a call has, and which of them they are.
local ARGUMENTS, MODE, FACTS, ENDING, HELD, NUMBERS = 6, 1, 2, 3, 4, 5
local OF_GROUP = 4
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

-- By name: what is added to a counter, and the ends of calls that were booked alone. Then what is
-- done in the end, in order.
local counters, ends = {}, {}
local changed, gone, ended, records = {}, {}, {}, {}

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
    counter.corrected = true
  end
  counter.seconds[second] = known
end

-- Book all calls of a group by their sums; false, with nothing changed, if one has not the hold that is known of.
local function book_as_one(group)
  if #group.told == group.sums then
    return false
  end
  for i = 0, group.count - 1 do
    local hold = ask('HMGET', KEYS[group.hold + i], 'state', 'amounts')
    if hold[1] ~= 'held' or hold[2] ~= ARGV[group.argument + ARGUMENTS * i + HELD] then
      return false
    end
  end
  local size = #group.counters
  for at = group.sums + 1, #group.told, 1 + 2 * size do
    for i, counter in ipairs(group.counters) do
      local used, held = group.told[at + i], group.told[at + size + i]
      if counter.kind == BUDGET then
        counter.used, counter.held = counter.used + used, counter.held - held
      elseif counter.kind == RATE and used ~= held then
        correct(counter, group.told[at], used - held)
      end
    end
  end
  for i = 0, group.count - 1 do
    local argument = group.argument + ARGUMENTS * i
    for _, counter in ipairs(group.counters) do
      if counter.kind ~= BUDGET and counter.kind ~= RATE then
        table.insert(counter.left, ARGV[argument])
      end
    end
    table.insert(gone, KEYS[group.hold + i])
    table.insert(ended, ARGV[argument])
    table.insert(records, {argument = argument, kind = 'usage'})
  end
  return true
end

-- Book one call of a group; returns the kind of its record.
local function book(group, hold_key, argument)
  local hold = ends[hold_key] or ask('HMGET', hold_key, 'state', 'amounts', 'end')
  local state, mode, id = hold[1] or 'missing', ARGV[argument + MODE], ARGV[argument]
  if state == 'settled' or state == 'void' or (state == 'swept' and mode == 'sweep') then
    return 'ended'
  end
  if mode == 'sweep' and (state ~= 'held' or now < tonumber(ask('ZSCORE', KEYS[1], id) or 0)) then
    return 'running'
  end

  local booked, terms = {}, numbers(ARGV[argument + NUMBERS])
  for figure in string.gmatch(hold[2] or '', '%S+') do
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
        table.insert(counter.left, id)
      end
    end
  end

  local record = RECORDS[state]
  if mode == 'void' and state ~= 'swept' then
    record = 'void'
  end
  if mode == 'sweep' then
    local amounts = {}
    for i = 1, #group.counters do
      amounts[i] = string.format('%d', terms[1 + i])
    end
    ends[hold_key] = {'swept', table.concat(amounts, ' '), ARGV[argument + ENDING]}
  else
    ends[hold_key] = {mode == 'void' and 'void' or 'settled'}
  end
  ends[hold_key].seconds = mode == 'void' and group.told[3] or group.told[2]
  table.insert(gone, hold_key)
  table.insert(ended, id)
  if record ~= 'void' then
    table.insert(records, {argument = argument, kind = record, first = record == 'adjustment' and hold[3]})
  end
  return record
end

local groups, repeats = {}, false
do
  local key, argument, seen = 5, 1, {}
  while ARGV[argument] do
    local told = numbers(ARGV[argument])
    local group = {told = told, count = told[1], sums = OF_GROUP + 2 * told[4], counters = {}}
    for i = 1, told[4] do
      local counter = counters[KEYS[key]]
      if not counter then
        counter = {
          key = KEYS[key], kind = told[OF_GROUP + 2 * i - 1], expires = told[OF_GROUP + 2 * i],
          used = 0, held = 0, sum = false, seconds = false, corrected = false, left = {},
        }
        counters[counter.key] = counter
        table.insert(changed, counter)
      end
      group.counters[i], key = counter, key + 1
    end
    -- Of its first call; the others stand behind it.
    group.hold, group.argument = key, argument + 1
    for i = key, key + group.count - 1 do
      repeats, seen[KEYS[i]] = repeats or seen[KEYS[i]], true
    end
    key, argument = key + group.count, argument + 1 + ARGUMENTS * group.count
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
    table.insert(answers, as_one and 'usage' or book(group, KEYS[group.hold + i], group.argument + ARGUMENTS * i))
  end
end

-- From here on all is written and nothing read.
for _, counter in ipairs(changed) do
  if counter.kind == BUDGET then
    local used = counter.used ~= 0 and ask('HINCRBY', counter.key, 'used', counter.used)
    local held = counter.held ~= 0 and ask('HINCRBY', counter.key, 'held', counter.held)
    if counter.expires >= 0 and (used == counter.used or (held or 0) < 0) then
      -- It was new, or may have been.
      ask('EXPIREAT', counter.key, counter.expires)
    end
  elseif counter.corrected then
    local fields = {'sum', counter.sum}
    for second, charged in pairs(counter.seconds) do
      if charged then
        table.insert(fields, second)
        table.insert(fields, charged)
      end
    end
    ask('HSET', counter.key, unpack(fields))
  elseif #counter.left > 0 then
    ask('ZREM', counter.key, unpack(counter.left))
  end
end
if #ended > 0 then
  ask('ZREM', KEYS[1], unpack(ended))
  ask('HDEL', KEYS[4], unpack(ended))
  ask('DEL', unpack(gone))
end
for _, group in ipairs(settled) do
  for key = group.hold, group.hold + group.count - 1 do
    ask('HSET', KEYS[key], 'state', 'settled')
    ask('EXPIRE', KEYS[key], group.told[2])
  end
end
for hold, mark in pairs(ends) do
  if mark[1] == 'swept' then
    ask('HSET', hold, 'state', 'swept', 'amounts', mark[2], 'end', mark[3])
  else
    ask('HSET', hold, 'state', mark[1])
  end
  ask('EXPIRE', hold, mark.seconds)
end
if #records > 0 then
  ask('INCRBY', KEYS[3], #records)
end
for _, record in ipairs(records) do
  local argument = record.argument
  local facts, ending = ARGV[argument + FACTS], ARGV[argument + ENDING]
  if record.first then
    ask('XADD', KEYS[2], '*', 'request', ARGV[argument], 'kind', record.kind, 'at', now, 'call', facts, 'end', ending,
      'first', record.first)
  else
    ask('XADD', KEYS[2], '*', 'request', ARGV[argument], 'kind', record.kind, 'at', now, 'call', facts, 'end', ending)
  end
end
return answers
