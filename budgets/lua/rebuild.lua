-- Set what was used to what the ledger says, and make the counters believable again.
--
-- KEYS[1]     epoch of the counters
-- KEYS[2]     stream of usage records waiting for the ledger
-- KEYS[3]     number of records handed to the ledger
-- KEYS[4]     number of records the ledger has taken
-- KEYS[5]     the latest time seen (ms)
-- KEYS[6..]   budget counters
-- ARGV[1]     the new epoch
-- ARGV[2]     id of the last record the ledger's sums contain
-- ARGV[3..]   two for each counter: amount used, s since 1970 at which it may go, empty for never
--
-- Returns 1 when done; 0, with nothing written, when records were added since.
--
-- What is held stays: it belongs to calls that are running. The present time is
-- believed, whatever was seen before. A repeat sets the same again.

if redis.call('EXISTS', KEYS[2]) == 1 then
  local stream = redis.call('XINFO', 'STREAM', KEYS[2])
  for i = 1, #stream, 2 do
    if stream[i] == 'last-generated-id' and stream[i + 1] ~= ARGV[2] then
      return 0
    end
  end
elseif ARGV[2] ~= '0-0' then
  return 0
end
for i = 6, #KEYS do
  local at = 2 + (i - 6) * 2
  redis.call('HSET', KEYS[i], 'used', ARGV[at + 1])
  if ARGV[at + 2] ~= '' then
    redis.call('EXPIREAT', KEYS[i], ARGV[at + 2])
  end
end
redis.call('SET', KEYS[4], redis.call('GET', KEYS[3]) or 0)
local time = redis.call('TIME')
redis.call('SET', KEYS[5], time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('SET', KEYS[1], ARGV[1])
return 1
