-- Ends messages of one queue: acknowledged or rejected (both forget them), or put back for another worker.
-- KEYS: 1 the list of ids, 2 the hash of payloads, 3 this consumer's set of unacknowledged ids.
-- ARGV: 1 'forget' or 'requeue', then the ids.
for i = 2, #ARGV do
    if redis.call('SREM', KEYS[3], ARGV[i]) == 1 then
        if ARGV[1] == 'requeue' and redis.call('HEXISTS', KEYS[2], ARGV[i]) == 1 then
            redis.call('RPUSH', KEYS[1], ARGV[i])
        else
            redis.call('HDEL', KEYS[2], ARGV[i])
        end
    end
end
