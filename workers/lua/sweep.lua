-- Forgets what dead consumers of one queue had fetched: its leases have ended, and the poller has published it again.
-- KEYS: 1 the hash of payloads, 2 the heartbeats. ARGV: 1 silence in milliseconds that means dead, 2 prefix and
-- 3 suffix of the consumers' sets of unacknowledged ids. Times are Redis' own: no worker's clock is trusted.
local now = redis.call('TIME')
local oldest = now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(ARGV[1])
local dead = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', oldest)
for _, consumer in ipairs(dead) do
    local unacknowledged = ARGV[2] .. consumer .. ARGV[3]
    if redis.call('TYPE', unacknowledged).ok == 'set' then
        for _, id in ipairs(redis.call('SMEMBERS', unacknowledged)) do
            redis.call('HDEL', KEYS[1], id)
        end
    end
    redis.call('DEL', unacknowledged)
    redis.call('ZREM', KEYS[2], consumer)
end
return #dead
