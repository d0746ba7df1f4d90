-- Turn holds into usage and hand the usage records to the ledger, each once.
--
-- Calls that end at the same moment come together; what a counter says is written once for all of
-- them. Where all of them have the hold that whoever admitted them knows of, they are booked by their
-- sums, which costs as much as a single call but for the records. Else they are booked one after
-- the other, each as if it had come alone.
--
-- KEYS[1]     open holds, scored by deadline (ms)
-- KEYS[2]     stream of usage records waiting for the ledger
-- KEYS[3]     number of records handed to the ledger
-- KEYS[4]     requests that must stop
-- KEYS[5..]   the holds of all calls; then the counters that these were placed on, each once
-- ARGV[1]     numbers
-- ARGV[2..]   of each call six: request id; how it ends, settle, or sweep if its owner is gone, or void
--             if it was never answered; what is known of it, JSON; how it ended, JSON; how its
--             hold begins, as far as that is known; numbers.
--
-- Numbers are little-endian doubles. Those of all: how many calls there are; s for which the mark of
-- an end is kept, and that of a void; whether they may be booked by their sums (1 or 0); how many
-- counters; four for each of these: kind (0 budget, 1 rate, 2 leases), s since 1970 at which a budget's
-- counter may go, -1 for never, and what all calls together add to what it has as used, and as held. Then
-- three for each second in which a rate has to be corrected: which of the counters it is, from 1
-- on; s since 1970; by how much. The sums are nothing where they may not be booked by them.
-- Those of a call: of each of its counters which one it is, from 1 on; ms since 1970 at which the call
-- was admitted; the amount used of each counter.
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
local OF_ALL, OF_COUNTER = 5, 4
-- How many arguments a call has, and which of them they are.
local ARGUMENTS, MODE, FACTS, ENDING, HELD, NUMBERS = 6, 1, 2, 3, 4, 5
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

-- What is told of the counters stays there, and what is added to them.
local told = numbers(ARGV[1])
local calls, seconds_of_mark, seconds_of_void, as_one, size = unpack(told, 1, OF_ALL)
local last_of_counters = OF_ALL + OF_COUNTER * size
local found = ask('MGET', unpack(KEYS, 5, 4 + calls))

-- By the name of its hold the end of each call that was booked alone. Then what is done in the end, in order.
local ends, ended, records = {}, {}, {}

-- By the place of a rate: the seconds that were corrected, and the sum of all.
local seconds, sums = {}, {}

-- Correct what the second of a rate has in which calls came.
local function correct(place, second, difference)
  local corrected = seconds[place] or {}
  local known = corrected[second]
  if known == nil then
    local charged = ask('HMGET', KEYS[4 + calls + place], second, 'sum')
    known = tonumber(charged[1]) or false
    sums[place] = sums[place] or tonumber(charged[2] or 0)
  end
  if known then
    -- A second that is gone has left the window; one that never was counts nothing.
    local after = math.max(0, known + difference)
    sums[place], known = sums[place] + after - known, after
  end
  corrected[second] = known
  seconds[place] = corrected
end

-- Book all calls by their sums; false, with nothing changed, if one has not the hold that is known of.
local function book_as_one()
  for i = 1, calls do
    local argument = 2 + ARGUMENTS * (i - 1)
    if not found[i] or string.find(found[i], ARGV[argument + HELD], 1, true) ~= 1 then
      return false
    end
    ended[i], records[i] = ARGV[argument], {'usage', argument}
  end
  for at = last_of_counters + 1, #told, 3 do
    correct(told[at], told[at + 1], told[at + 2])
  end
  return true
end

-- Book one call; returns the kind of its record.
local function book(i)
  local key, argument = KEYS[4 + i], 2 + ARGUMENTS * (i - 1)
  local hold = ends[key] or read_hold(found[i], key)
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
  local own = (#terms - 1) / 2
  local second, amounts = math.floor(terms[own + 1] / 1000), {}
  -- Else the reserve whose answer was lost never came, and the mark keeps it out.
  local came = mode ~= 'void' or state ~= 'missing'
  for n = 1, own do
    local place, before, amount = terms[n], booked[n] or 0, terms[own + 1 + n]
    local at = OF_ALL + OF_COUNTER * (place - 1)
    amounts[n] = string.format('%d', amount)
    if came and told[at + 1] == BUDGET then
      if state == 'held' then
        told[at + 3], told[at + 4] = told[at + 3] + amount, told[at + 4] - before
      else
        told[at + 3] = told[at + 3] + amount - before
      end
    elseif told[at + 1] == RATE and amount ~= before and state ~= 'missing' then
      correct(place, second, amount - before)
    end
  end

  if mode == 'sweep' then
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

local answers = {}
as_one = as_one == 1 and book_as_one()
if not as_one then
  ended, records = {}, {}
  for at = OF_ALL, last_of_counters - 1, OF_COUNTER do
    told[at + 3], told[at + 4] = 0, 0
  end
end
for i = 1, calls do
  answers[i] = as_one and 'usage' or book(i)
end

-- From here on all is written and nothing read.
for place = 1, size do
  local at, key = OF_ALL + OF_COUNTER * (place - 1), KEYS[4 + calls + place]
  if told[at + 1] == BUDGET then
    local expires, used_now, held_now = told[at + 2], told[at + 3], told[at + 4]
    local used = used_now ~= 0 and ask('HINCRBY', key, 'used', used_now)
    local held = held_now ~= 0 and ask('HINCRBY', key, 'held', held_now)
    if expires >= 0 and (used == used_now or (held or 0) < 0) then
      -- It was new, or may have been.
      ask('EXPIREAT', key, expires)
    end
  elseif seconds[place] then
    local fields = {'sum', sums[place]}
    for second, charged in pairs(seconds[place]) do
      if charged then
        table.insert(fields, second)
        table.insert(fields, charged)
      end
    end
    if #fields > 2 then
      ask('HSET', key, unpack(fields))
    end
  elseif told[at + 1] ~= RATE and #ended > 0 then
    ask('ZREM', key, unpack(ended))
  end
end
if #ended > 0 then
  ask('ZREM', KEYS[1], unpack(ended))
  ask('HDEL', KEYS[4], unpack(ended))
end
if as_one then
  for key = 5, 4 + calls do
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
