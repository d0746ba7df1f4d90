-- Turn holds into usage and hand the usage records to the ledger, each once.
--
-- Calls that end at the same moment come together. They are booked one after the other, each as if
-- it had come alone; what a counter says is written once for all of them. Calls of a group were
-- counted on the same counters.
--
-- KEYS[1]     open holds, scored by deadline (ms)
-- KEYS[2]     stream of usage records waiting for the ledger
-- KEYS[3]     number of records handed to the ledger
-- KEYS[4]     requests that must stop
-- KEYS[5..]   of each group the counters that holds were placed on, then the holds of its calls
-- ARGV        of each group one: numbers. Then of each of its calls five: request id; how it ends,
--             settle, or sweep if its owner is gone, or void if it was never answered; what is
--             known of it, JSON; how it ended, JSON; numbers.
--
-- Numbers are little-endian doubles. Those of a group: how many calls it has; then two for each
-- counter: kind (0 budget, 1 rate, 2 leases); s since 1970 at which a budget's counter may go,
-- -1 for never. Those of a call: ms since 1970 at which it was admitted; s for which the mark of
-- its end is kept; the amount used of each counter.
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

-- By name: what is added to a counter, and the marks of ends. Then what is done in the end, in order.
local counters, marks = {}, {}
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

local function book(group, call)
  local hold = marks[call.hold] or ask('HMGET', call.hold, 'state', 'amounts', 'end')
  local state, mode, terms = hold[1] or 'missing', call.mode, call.numbers
  if state == 'settled' or state == 'void' or (state == 'swept' and mode == 'sweep') then
    return 'ended'
  end
  if mode == 'sweep' and (state ~= 'held' or now < tonumber(ask('ZSCORE', KEYS[1], call.id) or 0)) then
    return 'running'
  end

  local booked = {}
  for figure in string.gmatch(hold[2] or '', '%S+') do
    table.insert(booked, tonumber(figure))
  end
  -- Else the reserve whose answer was lost never came, and the mark keeps it out.
  if mode ~= 'void' or state ~= 'missing' then
    local second = math.floor(terms[1] / 1000)
    for i, counter in ipairs(group) do
      local before, amount = booked[i] or 0, terms[2 + i]
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
        table.insert(counter.left, call.id)
      end
    end
  end

  local record = RECORDS[state]
  if mode == 'void' and state ~= 'swept' then
    record = 'void'
  end
  if mode == 'sweep' then
    local amounts = {}
    for i = 1, #group do
      amounts[i] = string.format('%d', terms[2 + i])
    end
    marks[call.hold] = {'swept', table.concat(amounts, ' '), call.ending}
  else
    marks[call.hold] = {mode == 'void' and 'void' or 'settled'}
  end
  marks[call.hold].seconds = terms[2]
  table.insert(gone, call.hold)
  table.insert(ended, call.id)
  if record ~= 'void' then
    local entry = {'request', call.id, 'kind', record, 'at', now, 'call', call.facts, 'end', call.ending}
    if record == 'adjustment' then
      table.insert(entry, 'first')
      table.insert(entry, hold[3])
    end
    table.insert(records, entry)
  end
  return record
end

local answers = {}
local key, argument = 5, 1
while ARGV[argument] do
  local told, group = numbers(ARGV[argument]), {}
  for i = 1, (#told - 1) / 2 do
    local counter = counters[KEYS[key]]
    if not counter then
      counter = {
        key = KEYS[key], kind = told[2 * i], expires = told[2 * i + 1],
        used = 0, held = 0, sum = false, seconds = false, corrected = false, left = {},
      }
      counters[counter.key] = counter
      table.insert(changed, counter)
    end
    group[i], key = counter, key + 1
  end
  argument = argument + 1
  for _ = 1, told[1] do
    table.insert(answers, book(group, {
      hold = KEYS[key], id = ARGV[argument], mode = ARGV[argument + 1], facts = ARGV[argument + 2],
      ending = ARGV[argument + 3], numbers = numbers(ARGV[argument + 4]),
    }))
    key, argument = key + 1, argument + 5
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
for hold, mark in pairs(marks) do
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
for _, entry in ipairs(records) do
  ask('XADD', KEYS[2], '*', unpack(entry))
end
return answers
