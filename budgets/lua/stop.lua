-- Ask running calls to end.
--
-- KEYS[1]     requests that must stop, with the reason
-- KEYS[2..]   holds of the calls
-- ARGV[1]     the reason, as the heartbeat of each call finds it
-- ARGV[2..]   their request ids, in the same order
--
-- Returns the ids of those that are running; of the others nothing is written.
-- A repeat writes the reason again.

local found = {}
local holds = redis.call('MGET', unpack(KEYS))
for i = 2, #KEYS do
  if read_hold(holds[i], KEYS[i]).state == 'held' then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[1])
    table.insert(found, ARGV[i])
  end
end
return found
