-- Say that a call is still running: its hold and its leases last longer.
--
-- KEYS[1]     this request's hold
-- KEYS[2]     open holds, scored by deadline (ms)
-- KEYS[3]     requests that must stop, with the reason
-- KEYS[4]     generations
-- KEYS[5..]   sets of leases the call is in
-- ARGV[1]     request id
-- ARGV[2]     how long the hold lasts without a heartbeat, ms
-- ARGV[3]     output tokens delivered so far
-- ARGV[4]     phase: reserved, or started once the upstream was called
-- ARGV[5]     the tenant's subject among the generations
--
-- Returns {state, request id, reason to stop or empty, generation of the tenant,
-- generation of the platform, now in ms}; a generation Redis does not have is -1. The
-- state is held; or, with nothing written: settled, swept, void, or missing when Redis
-- lost the hold.
--
-- A repeat does the same again; a late one takes nothing back.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local hold = read_hold(redis.call('MGET', KEYS[1])[1], KEYS[1])
if hold.state == 'held' then
  local deadline = now + ARGV[2]
  hold.output = math.max(tonumber(hold.output), tonumber(ARGV[3]))
  hold.phase = hold.phase == 'started' and hold.phase or ARGV[4]
  write_hold(KEYS[1], hold)
  for i = 5, #KEYS do
    redis.call('ZADD', KEYS[i], deadline, ARGV[1])
  end
  redis.call('ZADD', KEYS[2], deadline, ARGV[1])
end
return {
  hold.state,
  ARGV[1],
  redis.call('HGET', KEYS[3], ARGV[1]) or '',
  tonumber(redis.call('ZSCORE', KEYS[4], ARGV[5]) or -1),
  tonumber(redis.call('ZSCORE', KEYS[4], 'platform') or -1),
  now,
}
