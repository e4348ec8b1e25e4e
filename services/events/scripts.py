"""What Redis does in one step for the bus, in Lua."""

import hashlib

Argument = str | bytes | int | float


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

# KEYS: a budget. ARGV: amount, limit, window ms. Gives whether it is granted, the total, when the
# window ends (ms since 1970, 0: none has begun) and the milliseconds until then.
SPEND = Script("""
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local known = redis.call('HMGET', KEYS[1], 'total', 'ends')
local total, ends = tonumber(known[1] or '0'), tonumber(known[2] or '0')
if ends <= now_ms then total, ends = 0, 0 end
local left = ends > 0 and ends - now_ms or tonumber(ARGV[3])
local amount = tonumber(ARGV[1])
if total + amount > tonumber(ARGV[2]) then return {0, total, ends, left} end
if amount > 0 then
  total, ends = total + amount, now_ms + left
  redis.call('HSET', KEYS[1], 'total', total, 'ends', ends)
  redis.call('PEXPIREAT', KEYS[1], ends)
end
return {1, total, ends, left}
""")

# Who is present: a hash of data by member for each topic, and one sorted set of all members (named
# topic NUL member) by the time their process must have said so again. Every process looks for
# those whose time is over, of whatever topic, so that any one alive tells of them.
# The keys of topics are made from prefixes: these scripts are not for a Redis cluster.
_MEMBERS = """
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local function key(topic) return ARGV[1] .. topic end
local function tell(topic, member, is_present)
  local data = cjson.encode({member = member, is_present = is_present})
  redis.call('PUBLISH', ARGV[2] .. topic, '0 - ' .. data)
end
local function leave(topic, member)
  redis.call('ZREM', KEYS[1], topic .. '\\0' .. member)
  if redis.call('HDEL', key(topic), member) == 1 then tell(topic, member, false) end
end
"""

# KEYS: members of all topics. ARGV: prefix of keys, prefix of channels, then for each member its
# topic, name, data and ttl ms. Both keys outlast every ttl.
JOIN = Script(
    _MEMBERS
    + """
for i = 3, #ARGV, 4 do
  local topic, member, data = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local before = redis.call('HGET', key(topic), member)
  redis.call('HSET', key(topic), member, data)
  redis.call('PEXPIRE', key(topic), 7200000)
  redis.call('ZADD', KEYS[1], now_ms + ARGV[i + 3], topic .. '\\0' .. member)
  if before ~= data then tell(topic, member, true) end
end
redis.call('PEXPIRE', KEYS[1], 7200000)
"""
)

# KEYS: members of all topics. ARGV: both prefixes, then for each member its topic and name.
LEAVE = Script(
    _MEMBERS
    + """
for i = 3, #ARGV, 2 do leave(ARGV[i], ARGV[i + 1]) end
"""
)

# KEYS: members of all topics. ARGV: both prefixes, then for each member its topic, name and ttl ms.
# Gives the places (0, 1, 2 …) of those that are not known any more.
STAY = Script(
    _MEMBERS
    + """
local unknown = {}
for i = 3, #ARGV, 3 do
  local topic, member = ARGV[i], ARGV[i + 1]
  local name = topic .. '\\0' .. member
  if redis.call('ZSCORE', KEYS[1], name) and redis.call('HEXISTS', key(topic), member) == 1 then
    redis.call('ZADD', KEYS[1], now_ms + ARGV[i + 2], name)
    redis.call('PEXPIRE', key(topic), 7200000)
  else
    table.insert(unknown, (i - 3) / 3)
  end
end
redis.call('PEXPIRE', KEYS[1], 7200000)
return unknown
"""
)

# KEYS: members of all topics. ARGV: both prefixes, most to drop. Gives how many were dropped.
SWEEP = Script(
    _MEMBERS
    + """
local gone = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms, 'LIMIT', 0, ARGV[3])
for _, name in ipairs(gone) do
  local cut = string.find(name, '\\0', 1, true)
  leave(string.sub(name, 1, cut - 1), string.sub(name, cut + 1))
end
return #gone
"""
)

# KEYS: members of all topics. ARGV: both prefixes, topic. Gives names and data, one after another.
MEMBERS = Script(
    _MEMBERS
    + """
local known = redis.call('HGETALL', key(ARGV[3]))
local present = {}
for i = 1, #known, 2 do
  local ends_at = redis.call('ZSCORE', KEYS[1], ARGV[3] .. '\\0' .. known[i])
  if ends_at and tonumber(ends_at) > now_ms then
    table.insert(present, known[i])
    table.insert(present, known[i + 1])
  end
end
return present
"""
)
