-- Grant a running call more GPU time, on every counter that charges it or on none.
--
-- KEYS[1]     this request's hold
-- KEYS[2..]   budget counters that charge GPU time
-- ARGV[1]     request id
-- ARGV[2]     ms of GPU time granted from now on, in all
-- ARGV[3..]   three for each counter: its place among those of the hold; the amount held from now
--             on; the limit, -1 if it may not refuse
--
-- Returns {state, request id, {room of each counter, with what the call holds}}. The
-- state is held when the time is granted; or, with nothing written: short when a
-- counter has not the room, or settled, swept, void or missing.
--
-- A repeat, and one that comes late, writes nothing and returns held.

local hold = read_hold(redis.call('MGET', KEYS[1])[1], KEYS[1])
if hold.state ~= 'held' then
  return {hold.state, ARGV[1], {}}
end
if tonumber(ARGV[2]) <= tonumber(hold.gpu) then
  return {'held', ARGV[1], {}}
end

local amounts = {}
for figure in string.gmatch(hold.amounts, '%S+') do
  table.insert(amounts, figure)
end
local rooms, more, state = {}, {}, 'held'
for i = 2, #KEYS do
  local at = 3 * (i - 1)
  local place, amount, limit = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  more[i] = amount - tonumber(amounts[place])
  rooms[i - 1] = -1
  if limit >= 0 then
    local figures = redis.call('HMGET', KEYS[i], 'used', 'held')
    rooms[i - 1] = limit - tonumber(figures[1] or 0) - tonumber(figures[2] or 0) + tonumber(amounts[place])
    if amount > rooms[i - 1] then
      state = 'short'
    end
  end
  amounts[place] = string.format('%d', amount)
end
if state == 'held' then
  for i = 2, #KEYS do
    redis.call('HINCRBY', KEYS[i], 'held', string.format('%d', more[i]))
  end
  hold.amounts, hold.gpu = table.concat(amounts, ' '), ARGV[2]
  write_hold(KEYS[1], hold)
end
return {state, ARGV[1], rooms}
