-- Tell the stream which records the ledger has taken.
--
-- KEYS[1]     stream of usage records waiting for the ledger
-- KEYS[2]     number of records the ledger has taken
-- KEYS[3..]   budget counters that have counted what the ledger had already
-- ARGV[1]     consumer group
-- ARGV[2]     what to correct with a record, JSON: by its id a list of pairs, the place of the
--             counter among KEYS[3..], from 0 on, and what is added to used, as text
-- ARGV[3..]   ids of stream entries
--
-- Returns how many were waiting. Those acknowledged before are not counted
-- again and correct nothing again, so a repeat returns 0.

local corrections = cjson.decode(ARGV[2])
local taken = 0
for i = 3, #ARGV do
  if redis.call('XACK', KEYS[1], ARGV[1], ARGV[i]) == 1 then
    taken = taken + 1
    for _, correction in ipairs(corrections[ARGV[i]] or {}) do
      local counter = KEYS[3 + correction[1]]
      if redis.call('HEXISTS', counter, 'used') == 1 then
        redis.call('HINCRBY', counter, 'used', correction[2])
      end
    end
  end
end
redis.call('INCRBY', KEYS[2], taken)
return taken
