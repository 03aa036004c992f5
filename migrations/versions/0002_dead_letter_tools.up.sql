-- Bulk replay, groups of dead letters, and the audit chain. As in 0001: initial value; who changes it; when.

-- ---------------------------------------------------------------------------------------------------------------------
-- A replay is of one request id (or one of its deliveries), or, when it has a selector, of all open dead letters that
-- matched it when it was asked for. Such a bulk replay is carried out in paced batches: it is due again after each.
--   requested: nothing done yet. running: some of its items were sent again, the rest waits. done: every item was sent
--   again or found in conflict (what came of them is in the items). cancelled: a person stopped it, the rest stays.
ALTER TABLE replays
    ALTER COLUMN request_id DROP NOT NULL,
    ADD COLUMN selector jsonb,                                          -- what it selected; null: by request id; never
    ADD COLUMN matched integer CHECK (matched >= 0),                    -- how many letters matched; null: no selector; never
    ADD COLUMN rate_per_s double precision CHECK (rate_per_s > 0),      -- items sent again per second, at most; never
    ADD COLUMN concurrency integer CHECK (concurrency BETWEEN 1 AND 20), -- items under way at once, at most; never
    ADD COLUMN delete_after boolean NOT NULL DEFAULT false,             -- letters are removed once delivered; never
    ADD COLUMN cancelled_by text,                                       -- who cancelled it, once
    ADD COLUMN cancel_reason text,                                      -- why, once
    DROP CONSTRAINT replays_state_check,
    ADD CONSTRAINT replays_state_check CHECK (state IN ('requested', 'running', 'cancelled', 'done')),
    DROP CONSTRAINT replays_due,
    ADD CONSTRAINT replays_due CHECK ((state IN ('done', 'cancelled')) = (due_at IS NULL)),
    ADD CONSTRAINT replays_selects CHECK (request_id IS NOT NULL OR selector IS NOT NULL),
    ADD CONSTRAINT replays_paced CHECK (
        num_nulls(selector, matched, rate_per_s, concurrency) IN (0, 4)
    );
CREATE INDEX replays_by_tenant ON replays (tenant_id, id);

-- cancelled: its replay was cancelled before the actor came to it; its dead letter is as it was.
ALTER TABLE replay_items
    DROP CONSTRAINT replay_items_state_check,
    ADD CONSTRAINT replay_items_state_check
        CHECK (state IN ('requested', 'replayed', 'resolved', 'failed', 'conflict', 'cancelled'));
-- The next batch, and what is under way, whatever was done before.
CREATE INDEX replay_items_waiting ON replay_items (replay_id, delivery_id) WHERE state = 'requested';
CREATE INDEX replay_items_unsettled ON replay_items (replay_id, delivery_id) WHERE state = 'replayed';

ALTER TABLE dead_letters
    ADD COLUMN delete_when_resolved boolean NOT NULL DEFAULT false; -- set by a replay with delete_after; the poller removes it
CREATE INDEX dead_letters_open ON dead_letters (tenant_id, id) WHERE status = 'open';
CREATE INDEX dead_letters_open_by_endpoint ON dead_letters (tenant_id, endpoint_id, id) WHERE status = 'open';
CREATE INDEX dead_letters_by_event ON dead_letters (event_id);
CREATE INDEX dead_letters_by_run ON dead_letters (tenant_id, run_id) WHERE run_id IS NOT NULL;
CREATE INDEX dead_letters_removable ON dead_letters (id) WHERE delete_when_resolved AND status = 'resolved';

-- ---------------------------------------------------------------------------------------------------------------------
-- The audit chain. A row is inserted by whoever does the act, in the act's own transaction, unchained. The poller chains it
-- a few seconds later: the next number of its tenant, and SHA-256 over the hash before it and every column of its own. From
-- then on no edit, exchange or removal goes unseen by `homing audit verify`, and none is possible while the triggers stand.
ALTER TABLE audit_events
    ADD COLUMN seq bigint CHECK (seq > 0),                       -- null until chained; by homing_chain_audit, once
    ADD COLUMN hash bytea CHECK (octet_length(hash) = 32),       -- with seq
    ADD CONSTRAINT audit_events_chained CHECK ((seq IS NULL) = (hash IS NULL));
CREATE UNIQUE INDEX audit_events_chain ON audit_events (tenant_id, seq) WHERE seq IS NOT NULL;
CREATE INDEX audit_events_unchained ON audit_events (id) WHERE seq IS NULL;
CREATE INDEX audit_events_by_tenant ON audit_events (tenant_id, id);

-- The last link of each tenant's chain: what shows that the end was cut off. By homing_chain_audit only; never removed.
CREATE TABLE audit_heads (
    tenant_id  text PRIMARY KEY,
    seq        bigint NOT NULL CHECK (seq > 0),
    hash       bytea NOT NULL CHECK (octet_length(hash) = 32),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- SHA-256 over the hash before it (nothing, for the first) and the row as a JSON array: times as microseconds since 1970, the
-- two states as text. `app/audit.py` computes the same by itself when it verifies.
CREATE FUNCTION homing_audit_hash(previous bytea, a audit_events) RETURNS bytea LANGUAGE sql STABLE AS $$
    SELECT sha256(previous || convert_to(jsonb_build_array(
        a.seq, a.id, a.tenant_id, a.action, a.subject, a.before::text, a.after::text, a.actor, a.reason, a.request_id,
        a.traceparent, (extract(epoch FROM a.created_at) * 1000000)::bigint)::text, 'UTF8'))
$$;

-- Chains at most so many rows, oldest first; returns how many. One at a time: the second caller gets 0 at once. Runs with the
-- owner's rights, so that the application's role needs no UPDATE on these two tables.
CREATE FUNCTION homing_chain_audit(at_most integer) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    a audit_events;
    head audit_heads;
    chained integer := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(1752132970) THEN
        RETURN 0;
    END IF;
    FOR a IN
        SELECT * FROM (SELECT * FROM audit_events WHERE seq IS NULL ORDER BY id LIMIT at_most) AS oldest
        ORDER BY tenant_id, id
    LOOP
        IF head.tenant_id IS DISTINCT FROM a.tenant_id THEN
            PERFORM homing_set_audit_head(head);
            SELECT * INTO head FROM audit_heads WHERE tenant_id = a.tenant_id;
            IF NOT FOUND THEN
                head.tenant_id := a.tenant_id;
                head.seq := 0;
                head.hash := '';
            END IF;
        END IF;
        a.seq := head.seq + 1;
        a.hash := homing_audit_hash(head.hash, a);
        UPDATE audit_events SET seq = a.seq, hash = a.hash WHERE id = a.id;
        head.seq := a.seq;
        head.hash := a.hash;
        chained := chained + 1;
    END LOOP;
    PERFORM homing_set_audit_head(head);
    RETURN chained;
END
$$;

CREATE FUNCTION homing_set_audit_head(head audit_heads) RETURNS void LANGUAGE sql AS $$
    INSERT INTO audit_heads (tenant_id, seq, hash)
    SELECT head.tenant_id, head.seq, head.hash WHERE head.tenant_id IS NOT NULL
    ON CONFLICT (tenant_id) DO UPDATE SET seq = excluded.seq, hash = excluded.hash, updated_at = now()
$$;

-- A function with its owner's rights must not find tables that its caller made, and is for those who were granted it.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION homing_chain_audit(integer) SET search_path = %I, pg_temp', current_schema());
END
$$;
REVOKE EXECUTE ON FUNCTION homing_chain_audit(integer) FROM PUBLIC;

CREATE FUNCTION homing_keep_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND TG_TABLE_NAME = 'audit_events' THEN
        IF OLD.seq IS NULL AND NEW.seq IS NOT NULL THEN
            OLD.seq := NEW.seq;
            OLD.hash := NEW.hash;
            IF NEW IS NOT DISTINCT FROM OLD THEN
                RETURN NEW;
            END IF;
        END IF;
    ELSIF TG_OP = 'UPDATE' THEN
        IF NEW.tenant_id = OLD.tenant_id AND NEW.seq > OLD.seq THEN
            RETURN NEW;
        END IF;
    ELSIF TG_OP = 'TRUNCATE' THEN
        IF NOT EXISTS (SELECT FROM audit_heads) THEN
            RETURN NULL;
        END IF;
    END IF;
    RAISE EXCEPTION '% of % is refused: the audit trail is append-only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER audit_events_keep BEFORE UPDATE OR DELETE ON audit_events FOR EACH ROW EXECUTE FUNCTION homing_keep_audit();
CREATE TRIGGER audit_events_keep_all BEFORE TRUNCATE ON audit_events EXECUTE FUNCTION homing_keep_audit();
CREATE TRIGGER audit_events_unchained_at_first BEFORE INSERT ON audit_events
    FOR EACH ROW WHEN (NEW.seq IS NOT NULL OR NEW.hash IS NOT NULL) EXECUTE FUNCTION homing_keep_audit();
CREATE TRIGGER audit_heads_keep BEFORE UPDATE OR DELETE ON audit_heads FOR EACH ROW EXECUTE FUNCTION homing_keep_audit();
CREATE TRIGGER audit_heads_keep_all BEFORE TRUNCATE ON audit_heads EXECUTE FUNCTION homing_keep_audit();
