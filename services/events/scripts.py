"""What Redis does in one step for the bus, in Lua."""

import hashlib


class Script:
    """A Lua script, known to Redis by its hash."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


# KEYS: meta, log. ARGV: channel, payload, new epoch, run id, max entries, max bytes, idle ms.
# meta holds e(poch), r(un id), s(eq) and b(ytes ever appended). A server that is not the one the
# log was last written on (a restart, a failover) may have lost its last entries, and would give
# their seqs again to others: the log begins anew. The connection's run id may be out of date behind
# a proxy, so a difference is checked before it counts.
APPEND = Script("""
local known = redis.call('HMGET', KEYS[1], 'e', 'r')
local epoch = known[1]
if not epoch or (ARGV[4] ~= '' and known[2] ~= ARGV[4]) then
  local run = ARGV[4]
  if run ~= '' then
    run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or run
  end
  if not epoch or known[2] ~= run then
    redis.call('DEL', KEYS[1], KEYS[2])
    epoch = ARGV[3]
    redis.call('HSET', KEYS[1], 'e', epoch, 'r', run)
  end
end
local seq = redis.call('HINCRBY', KEYS[1], 's', 1)
local bytes = redis.call('HINCRBY', KEYS[1], 'b', #ARGV[2])
local room = math.max(1, math.floor(tonumber(ARGV[6]) * seq / bytes))
local keep = math.min(tonumber(ARGV[5]), room)
local name = string.format('%.0f', seq)
redis.call('XADD', KEYS[2], 'MAXLEN', '~', string.format('%.0f', keep), name .. '-0', 'd', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[7])
redis.call('PEXPIRE', KEYS[2], ARGV[7])
redis.call('PUBLISH', ARGV[1], name .. ' ' .. epoch .. ' ' .. ARGV[2])
return seq
""")

# KEYS: meta, log. ARGV: after, limit (-1: all). Gives epoch, floor, head and the entries.
READ = Script("""
local known = redis.call('HMGET', KEYS[1], 'e', 's')
if not known[1] then return {'', 0, 0, {}} end
local head = tonumber(known[2])
local floor = head
local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)
if oldest[1] then floor = tonumber(string.match(oldest[1][1], '^%d+')) - 1 end
local from = string.format('%.0f-0', tonumber(ARGV[1]) + 1)
local limit = tonumber(ARGV[2])
local entries = {}
if limit < 0 then
  entries = redis.call('XRANGE', KEYS[2], from, '+')
elseif limit > 0 then
  entries = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', limit)
end
return {known[1], floor, head, entries}
""")

# KEYS: nodes. ARGV: node id ('' only asks), ttl ms, late ms, prefix of the channels of nodes. Gives
# whether the id was unknown, and the ids alive: heard of within `late`, or within the ttl if their
# connection stands. A process that was killed has none; one that is stalled or cut off still does.
BEAT = Script("""
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local is_new = 0
if ARGV[1] ~= '' then
  is_new = redis.call('ZADD', KEYS[1], now_ms, ARGV[1])
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms - ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
local heard = redis.call('ZRANGEBYSCORE', KEYS[1], now_ms - ARGV[2], '+inf', 'WITHSCORES')
local alive = {}
for i = 1, #heard, 2 do
  local is_alive = tonumber(heard[i + 1]) >= now_ms - ARGV[3]
  if not is_alive then
    local told = redis.pcall('PUBSUB', 'NUMSUB', ARGV[4] .. heard[i])
    is_alive = told.err ~= nil or told[2] > 0
  end
  if is_alive then alive[#alive + 1] = heard[i] end
end
return {is_new, alive}
""")

# KEYS: counter. ARGV: window ms.
COUNT = Script("""
local hits = redis.call('INCR', KEYS[1])
if hits == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return hits
""")
