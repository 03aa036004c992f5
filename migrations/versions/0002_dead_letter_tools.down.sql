-- Takes away everything that 0002_dead_letter_tools.up.sql made: bulk replays are forgotten (what they sent again stays sent),
-- the audit rows stay, their chain goes.
DROP TRIGGER audit_heads_keep_all ON audit_heads;
DROP TRIGGER audit_heads_keep ON audit_heads;
DROP TRIGGER audit_events_unchained_at_first ON audit_events;
DROP TRIGGER audit_events_keep_all ON audit_events;
DROP TRIGGER audit_events_keep ON audit_events;
DROP FUNCTION homing_keep_audit();
DROP FUNCTION homing_chain_audit(integer);
DROP FUNCTION homing_set_audit_head(audit_heads);
DROP FUNCTION homing_audit_hash(bytea, audit_events);
DROP TABLE audit_heads;
DROP INDEX audit_events_by_tenant, audit_events_unchained, audit_events_chain;
ALTER TABLE audit_events DROP COLUMN hash, DROP COLUMN seq;

DROP INDEX dead_letters_removable, dead_letters_by_run, dead_letters_by_event, dead_letters_open_by_endpoint,
           dead_letters_open;
ALTER TABLE dead_letters DROP COLUMN delete_when_resolved;

DELETE FROM replay_items i USING replays r WHERE r.id = i.replay_id AND (r.selector IS NOT NULL OR r.state = 'cancelled');
DELETE FROM replays WHERE selector IS NOT NULL OR state = 'cancelled';
DROP INDEX replay_items_unsettled, replay_items_waiting, replays_by_tenant;
ALTER TABLE replay_items
    DROP CONSTRAINT replay_items_state_check,
    ADD CONSTRAINT replay_items_state_check CHECK (state IN ('requested', 'replayed', 'resolved', 'failed', 'conflict'));
ALTER TABLE replays
    DROP CONSTRAINT replays_paced,
    DROP CONSTRAINT replays_selects,
    DROP CONSTRAINT replays_due,
    ADD CONSTRAINT replays_due CHECK ((state = 'done') = (due_at IS NULL)),
    DROP CONSTRAINT replays_state_check,
    ADD CONSTRAINT replays_state_check CHECK (state IN ('requested', 'done')),
    DROP COLUMN cancel_reason,
    DROP COLUMN cancelled_by,
    DROP COLUMN delete_after,
    DROP COLUMN concurrency,
    DROP COLUMN rate_per_s,
    DROP COLUMN matched,
    DROP COLUMN selector,
    ALTER COLUMN request_id SET NOT NULL;
