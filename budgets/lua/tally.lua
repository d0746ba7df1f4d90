-- Add what one process has counted for the metrics to the sums of all processes, once.
--
-- KEYS[1]     the sums
-- KEYS[2]     number of the last batch that was added for this process
-- ARGV[1]     number of this batch; those of a process only grow
-- ARGV[2]     for how many seconds that number is remembered
-- ARGV[3..]   name of a sum and what is added to it, in turns
--
-- Returns 1, or 0 for a repeat, which adds nothing: a batch whose answer was lost is sent again.

local last = redis.call('GET', KEYS[2])
if last and tonumber(last) >= tonumber(ARGV[1]) then
  return 0
end
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
for i = 3, #ARGV, 2 do
  redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
end
return 1
