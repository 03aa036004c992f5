-- Adds messages to one queue in one round trip. Idempotent per message id.
-- KEYS: 1 the list of ids, 2 the hash of payloads, 3 the list of wake tokens. ARGV: id, payload, id, payload, ...
-- Returns how many messages wait in the queue now.
for i = 1, #ARGV, 2 do
    if redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1]) == 1 then
        redis.call('RPUSH', KEYS[1], ARGV[i])
        redis.call('LPUSH', KEYS[3], '1')
    end
end
-- Tokens only wake consumers that sleep; a few too many cost an empty fetch each.
redis.call('LTRIM', KEYS[3], 0, 63)
return redis.call('LLEN', KEYS[1])
