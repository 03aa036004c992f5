-- Takes away everything that 0001_pipeline.up.sql made, with the data in it.
DROP VIEW delivery_status;
DROP TABLE audit_events, replay_items, replays, dead_letters, delivery_attempts, deliveries, event_keys, events,
           outbox_rejected, outbox_events, endpoint_secrets, endpoints, tenants;
DROP FUNCTION homing_ensure_partitions(integer), homing_wake_poller(), homing_uuid7_floor(timestamptz), homing_uuid7();
