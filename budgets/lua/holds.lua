-- How a call lies under its key, for the scripts that read or write holds: they begin with this text.
-- ``budgets/holds.py`` reads the same.
--
-- Of a call that runs, three lines:
--     held; what is held for it on each of its counters
--     output cap; the counter that capped it, 0 for none; ms of GPU time granted, 0 if it is not
--         bounded; ms since 1970 at which it was admitted; output tokens delivered so far; phase:
--         silent until its process has told one, then reserved, or started once the upstream was called
--     what is known of it, JSON
-- Of one that the sweep has ended, two:
--     swept; what was booked for it on each counter
--     how it ended, JSON
-- Of any other that has ended a word: settled or void.

-- What a text says, nil if there is none: MGET says so of a hash, too, which is what an earlier release wrote.
local function read_hold(text, key)
  if not text then
    local old = redis.call('HMGET', key, 'state', 'amounts', 'cap', 'capped', 'gpu', 'admitted', 'output', 'phase', 'call', 'end')
    return {
      state = old[1] or 'missing', amounts = old[2] or '', cap = old[3], capped = old[4], gpu = old[5], admitted = old[6],
      output = old[7], phase = old[8] == '' and 'silent' or old[8], call = old[9], ending = old[10],
    }
  end
  local hold, rest = {}
  hold.state, hold.amounts, rest = string.match(text, '^(%l+) ?([%d ]*)\n?(.*)$')
  if hold.state == 'held' then
    hold.cap, hold.capped, hold.gpu, hold.admitted, hold.output, hold.phase, hold.call =
      string.match(rest, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%l+)\n(.*)$')
  else
    hold.ending = rest
  end
  return hold
end

-- Of the text of a hold what is granted: the first line and the beginning of the second.
local function granted_text(amounts, cap, capped, gpu)
  return amounts .. '\n' .. cap .. ' ' .. capped .. ' ' .. gpu
end

-- And the rest of that line.
local function told_text(admitted, output, phase)
  return admitted .. ' ' .. output .. ' ' .. phase
end

local function held_text(granted, told, call)
  return 'held ' .. granted .. ' ' .. told .. '\n' .. call
end

local function write_hold(key, hold)
  local granted = granted_text(hold.amounts, hold.cap, hold.capped, hold.gpu)
  redis.call('SET', key, held_text(granted, told_text(hold.admitted, hold.output, hold.phase), hold.call))
end

-- Put in place of a hold, for so many seconds, how its call has ended: state, and if it was swept amounts and ending.
local function write_mark(key, mark, seconds)
  local text = mark.state
  if mark.state == 'swept' then
    text = 'swept ' .. mark.amounts .. '\n' .. mark.ending
  end
  redis.call('SET', key, text, 'EX', seconds)
end

