-- Turn a hold into usage and hand the usage record to the ledger, once.
--
-- KEYS[1]     this request's hold
-- KEYS[2]     open holds, scored by deadline (ms)
-- KEYS[3]     stream of usage records waiting for the ledger
-- KEYS[4]     number of records handed to the ledger
-- KEYS[5]     requests that must stop
-- KEYS[6..]   the counters the hold was placed on
-- ARGV[1]     request id
-- ARGV[2]     how it ends: settle; sweep, if its owner is gone; void, if it was never answered
-- ARGV[3]     what is known of the call, JSON
-- ARGV[4]     how it ended, JSON
-- ARGV[5]     numbers, little-endian doubles: ms since 1970 at which the call was admitted; s for
--             which the mark of its end is kept; then three for each counter: kind (0 budget,
--             1 rate, 2 leases); amount used; s since 1970 at which a budget's counter may go,
--             -1 for never
--
-- The record is a stream entry with the fields request, kind, at (ms), call and
-- end; its kind is usage, late when the hold was gone, or adjustment when the
-- sweep had booked the call: then first is the end as the sweep had told it,
-- and the record stands for the difference.
--
-- Returns the kind of the record. With nothing but the mark written: void. With
-- nothing written: ended when it had ended before, running when the sweep came
-- too early.
--
-- The first end counts, whatever a repeat says; a sweep gives way to the owner.

local BUDGET, RATE = 0, 1

local hold = redis.call('HMGET', KEYS[1], 'state', 'amounts', 'end')
local state = hold[1] or 'missing'
local mode = ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

if state == 'settled' or state == 'void' or (state == 'swept' and mode == 'sweep') then
  return 'ended'
end
if mode == 'sweep' and (state ~= 'held' or now < tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or 0)) then
  return 'running'
end

local terms = {struct.unpack('<' .. string.rep('d', #ARGV[5] / 8), ARGV[5])}
local booked = {}
for figure in string.gmatch(hold[2] or '', '%S+') do
  table.insert(booked, tonumber(figure))
end

local second = math.floor(terms[1] / 1000)
local amounts = {}
for i = 1, #KEYS - 5 do
  local key, before = KEYS[5 + i], booked[i] or 0
  local kind, amount, expires = terms[3 * i], terms[3 * i + 1], terms[3 * i + 2]
  amounts[i] = string.format('%d', amount)
  if mode == 'void' and state == 'missing' then
    -- The reserve whose answer was lost never came, and the mark keeps it out.
  elseif kind == BUDGET then
    local used, held
    if state == 'held' then
      used = redis.call('HINCRBY', key, 'used', amounts[i])
      held = redis.call('HINCRBY', key, 'held', string.format('%d', -before))
    else
      used = redis.call('HINCRBY', key, 'used', string.format('%d', amount - before))
    end
    if expires >= 0 and (used == amount or (held or 0) < 0) then
      -- It was new, or may have been.
      redis.call('EXPIREAT', key, expires)
    end
  elseif kind == RATE then
    -- A second that is gone has left the window; one that never was counts nothing.
    if amount ~= before and state ~= 'missing' then
      local figures = redis.call('HMGET', key, second, 'sum')
      if figures[1] then
        local after = math.max(0, figures[1] + amount - before)
        redis.call('HSET', key, second, after, 'sum', (figures[2] or 0) + after - figures[1])
      end
    end
  else
    redis.call('ZREM', key, ARGV[1])
  end
end

local record = ({held = 'usage', swept = 'adjustment', missing = 'late'})[state]
if mode == 'void' and state ~= 'swept' then
  record = 'void'
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[5], ARGV[1])
redis.call('DEL', KEYS[1])
if mode == 'sweep' then
  redis.call('HSET', KEYS[1], 'state', 'swept', 'amounts', table.concat(amounts, ' '), 'end', ARGV[4])
else
  redis.call('HSET', KEYS[1], 'state', mode == 'void' and 'void' or 'settled')
end
redis.call('EXPIRE', KEYS[1], terms[2])
if record ~= 'void' then
  redis.call('INCR', KEYS[4])
  local entry = {'request', ARGV[1], 'kind', record, 'at', now, 'call', ARGV[3], 'end', ARGV[4]}
  if record == 'adjustment' then
    table.insert(entry, 'first')
    table.insert(entry, hold[3])
  end
  redis.call('XADD', KEYS[3], '*', unpack(entry))
end
return record
