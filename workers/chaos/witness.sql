-- Added to the template that every scenario's database is copied from. Nothing of it is part of Homing's schema.

-- Failpoints are armed only where this table is.
CREATE TABLE homing_chaos_mark (made_at timestamptz NOT NULL DEFAULT now());

-- The business: one row for each event that was committed, in the event's own transaction.
CREATE TABLE orders (
    event_id   uuid PRIMARY KEY,
    tenant_id  text NOT NULL,
    event_type text NOT NULL,
    payload    jsonb NOT NULL,
    made_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Every change of a delivery's state or generation, written by the database itself.
CREATE TABLE homing_chaos_moves (
    n              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    delivery_id    uuid NOT NULL,
    at             timestamptz NOT NULL DEFAULT clock_timestamp(),
    began          timestamptz NOT NULL DEFAULT now(),
    old_state      text NOT NULL,
    state          text NOT NULL,
    old_generation integer NOT NULL,
    generation     integer NOT NULL,
    old_due_at     timestamptz,
    owner          text
);

CREATE FUNCTION homing_chaos_witness() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO homing_chaos_moves (delivery_id, old_state, state, old_generation, generation, old_due_at, owner)
    VALUES (NEW.id, OLD.state, NEW.state, OLD.generation, NEW.generation, OLD.due_at, NEW.lease_owner);
    RETURN NULL;
END
$$;

CREATE TRIGGER homing_chaos_witness AFTER UPDATE ON deliveries FOR EACH ROW
WHEN (OLD.state IS DISTINCT FROM NEW.state OR OLD.generation IS DISTINCT FROM NEW.generation)
EXECUTE FUNCTION homing_chaos_witness();
