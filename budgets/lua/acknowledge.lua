-- Tell the stream which records the ledger has taken.
--
-- KEYS[1]     stream of usage records waiting for the ledger
-- KEYS[2]     number of records the ledger has taken
-- ARGV[1]     consumer group
-- ARGV[2..]   ids of stream entries
--
-- Returns how many were waiting. Those acknowledged before are not counted
-- again, so a repeat returns 0.

local taken = redis.call('XACK', KEYS[1], unpack(ARGV))
redis.call('INCRBY', KEYS[2], taken)
return taken
