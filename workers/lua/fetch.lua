-- Takes messages off one queue, remembers them as fetched and not acknowledged, and says that this consumer lives.
-- KEYS: 1 the list of ids, 2 the hash of payloads, 3 this consumer's set of unacknowledged ids, 4 the heartbeats.
-- ARGV: 1 this consumer's id, 2 how many at most, 3 the largest payload that is handed out, in bytes.
-- Returns id, payload, id, payload, ...; the payload is an empty string when it is missing or too large.
-- First a look at each key: one of another type (not made by Homing) must raise its error before anything is moved.
redis.call('LLEN', KEYS[1])
redis.call('HLEN', KEYS[2])
redis.call('SCARD', KEYS[3])
local now = redis.call('TIME')
redis.call('ZADD', KEYS[4], now[1] * 1000 + math.floor(now[2] / 1000), ARGV[1])
local answer = {}
for _ = 1, ARGV[2] do
    local id = redis.call('LPOP', KEYS[1])
    if not id then break end
    redis.call('SADD', KEYS[3], id)
    local payload = ''
    if redis.call('HSTRLEN', KEYS[2], id) <= tonumber(ARGV[3]) then
        payload = redis.call('HGET', KEYS[2], id) or ''
    end
    answer[#answer + 1] = id
    answer[#answer + 1] = payload
end
return answer
