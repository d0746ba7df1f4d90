-- Say, as of one moment, what budget counters hold and which records wait for the ledger.
--
-- KEYS[1]     stream of usage records waiting for the ledger
-- KEYS[2]     epoch of the counters
-- KEYS[3]     open holds, scored by deadline (ms)
-- KEYS[4..]   budget counters
-- ARGV[1]     consumer group
-- ARGV[2]     how many records may be handed out
--
-- Returns {ms since 1970, epoch or an empty text, id of the newest record, whether more records
-- wait than may be handed out (1 or 0), number of open holds, number of those that are overdue,
-- {id and fields of each record that waits}, {used of each counter, empty for one that is not there}}.
-- With more than may be handed out, the last two are empty.
--
-- What waits is what was read and not acknowledged, and what was never read. Of a record that
-- the stream has lost the fields are empty. Writes nothing, so a repeat only looks again.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local epoch = redis.call('GET', KEYS[2]) or ''
local most = tonumber(ARGV[2])

-- A reply of commands that describe: names and values by turns.
local function value_of(reply, name)
  for i = 1, #reply, 2 do
    if reply[i] == name then
      return reply[i + 1]
    end
  end
end

local newest, delivered = '0-0', '0-0'
local waiting = {}
if redis.call('EXISTS', KEYS[1]) == 1 then
  newest = value_of(redis.call('XINFO', 'STREAM', KEYS[1]), 'last-generated-id')
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    if value_of(group, 'name') == ARGV[1] then
      delivered = value_of(group, 'last-delivered-id')
      for _, pending in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', most + 1)) do
        local found = redis.call('XRANGE', KEYS[1], pending[1], pending[1])
        table.insert(waiting, found[1] or {pending[1], {}})
      end
    end
  end
  for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. delivered, '+', 'COUNT', most + 1)) do
    table.insert(waiting, entry)
  end
end

local used = {}
local more = #waiting > most
if more then
  waiting = {}
else
  for i = 4, #KEYS do
    used[i - 3] = redis.call('HGET', KEYS[i], 'used') or ''
  end
end
return {now, epoch, newest, more and 1 or 0, redis.call('ZCARD', KEYS[3]),
  redis.call('ZCOUNT', KEYS[3], '-inf', now), waiting, used}
