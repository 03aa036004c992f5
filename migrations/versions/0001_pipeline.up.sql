-- Homing's schema. Every column says: initial value; who changes it; when. "never" means insert-only.
-- Times are the database's own clock; no other clock writes a column unless the column says so.

-- ---------------------------------------------------------------------------------------------------------------------
-- Identifiers: UUID version 7 (RFC 9562, 5.7): milliseconds, then 12 bits of the fraction of one (6.2, method 3), so ids
-- sort by the microsecond and partition by time. PostgreSQL has its own only from version 18 on; this runs on 15 to 18.
CREATE FUNCTION homing_uuid7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    SELECT encode(
        substring(int8send(us / 1000) FROM 3)
        || int2send((28672 + us % 1000 * 4096 / 1000)::smallint) -- 28672 is 0x7000: the version
        || substring(uuid_send(gen_random_uuid()) FROM 9),        -- the variant and 62 random bits
        'hex')::uuid
    FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS us) AS clock
$$;

-- The lowest id that a row made at this time can have: bounds of partitions, and of "since" filters on ids.
CREATE FUNCTION homing_uuid7_floor(at timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '70008000000000000000')::uuid
$$;

-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE tenants (
    id         text PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9_.:-]{1,64}$'), -- chosen by whoever makes it; never
    name       text NOT NULL,                                           -- for people; an operator, any time
    created_at timestamptz NOT NULL DEFAULT now()                       -- never
);
INSERT INTO tenants (id, name) VALUES ('default', 'Default tenant');

CREATE TABLE endpoints (
    id               uuid PRIMARY KEY DEFAULT homing_uuid7(),   -- never
    tenant_id        text NOT NULL REFERENCES tenants,          -- never
    name             text NOT NULL DEFAULT '',                  -- for people; an operator, any time
    url              text NOT NULL,                             -- where it goes, validated; an operator, any time
    event_types      text[] NOT NULL DEFAULT '{*}'              -- what it subscribes to; an operator, any time
                     CHECK (cardinality(event_types) BETWEEN 1 AND 100),
    -- active: called. paused: an operator holds its deliveries back, they wait without using up attempts.
    -- disabled: Homing stopped calling it (it answered 410); gets no new deliveries until an operator resumes it.
    -- archived: gone for good; gets nothing, keeps its history.
    status           text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'paused', 'disabled', 'archived')),
    status_reason    text,                                      -- why it is not active; with each change of status
    scheme           text NOT NULL DEFAULT 'standard' CHECK (scheme IN ('standard', 'hex')), -- signing; an operator
    -- Retry policy; an operator, any time; holds from the next failed attempt on.
    max_attempts     integer NOT NULL DEFAULT 5 CHECK (max_attempts BETWEEN 1 AND 100),
    retry_base_s     double precision NOT NULL DEFAULT 10 CHECK (retry_base_s BETWEEN 0 AND 86400),
    retry_factor     double precision NOT NULL DEFAULT 4 CHECK (retry_factor BETWEEN 1 AND 100),
    retry_cap_s      double precision NOT NULL DEFAULT 3600 CHECK (retry_cap_s BETWEEN 0 AND 604800),
    retry_jitter     double precision NOT NULL DEFAULT 0.2 CHECK (retry_jitter BETWEEN 0 AND 1),
    retry_schedule_s double precision[],                        -- explicit delays instead of base and factor; null: none
    slow_until       timestamptz,                               -- null; set half a minute ahead when an attempt timed out
                                                                -- or found no free connection: until then its deliveries
                                                                -- travel in a queue of their own
    version          integer NOT NULL DEFAULT 1,                -- +1 with every change of the row or of its secrets;
                                                                -- workers keep what they loaded until it differs
    created_at       timestamptz NOT NULL DEFAULT now(),        -- never
    updated_at       timestamptz NOT NULL DEFAULT now()         -- with every change
);
CREATE INDEX endpoints_by_tenant ON endpoints (tenant_id, id);

CREATE TABLE endpoint_secrets (
    id          uuid PRIMARY KEY DEFAULT homing_uuid7(),        -- never; part of what seals the secret
    endpoint_id uuid NOT NULL REFERENCES endpoints,             -- never
    key_id      text NOT NULL,                                  -- public name of the key, goes out with scheme hex; never
    sealed      bytea NOT NULL,                                 -- the secret, AES-256-GCM; re-sealed when keys rotate
    created_at  timestamptz NOT NULL DEFAULT now(),             -- never
    expires_at  timestamptz,                                    -- null: signs for ever; set when a newer key replaces it
    UNIQUE (endpoint_id, key_id)
);

-- ---------------------------------------------------------------------------------------------------------------------
-- The producer's contract. A producer needs INSERT on this table and nothing else. The poller deletes what it has taken
-- (into events) or set aside (into outbox_rejected), so that this table holds only what waits.
CREATE TABLE outbox_events (
    id              uuid PRIMARY KEY DEFAULT homing_uuid7(),    -- becomes the event's id and the webhook-id
    tenant_id       text NOT NULL DEFAULT 'default',            -- whose data it is
    event_type      text NOT NULL,                              -- such as invoice.paid
    payload         jsonb NOT NULL,                             -- becomes the body of the request
    request_id      text DEFAULT 'req_' || homing_uuid7(),      -- the producer's correlation id
    idempotency_key text,                                       -- the same key never makes a second set of deliveries
    traceparent     text,                                       -- W3C trace context, passed on
    run_id          text,                                       -- events that belong together
    ordering_key    text,                                       -- kept; ordering is not enforced yet
    headers         jsonb,                                      -- extra request headers, {"name": "value"}
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp() -- as near to the commit as a column can be
);
ALTER TABLE outbox_events SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
                               autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 10000);

-- Rows that could not be taken, whole, with the reason; `homing events resubmit` puts them back after the cause is mended.
CREATE TABLE outbox_rejected (
    LIKE outbox_events,
    reason      text NOT NULL,                                  -- what is wrong and what to do; never
    rejected_at timestamptz NOT NULL DEFAULT now(),             -- never
    PRIMARY KEY (id)
);
ALTER TABLE outbox_rejected ALTER COLUMN id DROP DEFAULT, ALTER COLUMN request_id DROP DEFAULT;

-- Wakes the poller, but only while it says that it sleeps: it holds the exclusive lock then, and the shared one cannot be
-- had. A NOTIFY in every producer's transaction would make all commits queue on one lock. The lock's key is "home".
CREATE FUNCTION homing_wake_poller() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock_shared(1752132965) THEN
        PERFORM pg_notify('homing_wake', '');
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER outbox_events_wake_poller AFTER INSERT ON outbox_events
    FOR EACH STATEMENT EXECUTE FUNCTION homing_wake_poller();

-- ---------------------------------------------------------------------------------------------------------------------
-- What was taken from the outbox. Insert-only; partitioned by the time in its id.
CREATE TABLE events (
    id              uuid PRIMARY KEY,               -- the outbox row's id
    tenant_id       text NOT NULL,
    event_type      text NOT NULL,
    body            text NOT NULL,                  -- exactly the bytes (UTF-8) that are signed and sent, every time
    request_id      text NOT NULL,
    idempotency_key text,
    traceparent     text,
    run_id          text,
    ordering_key    text,
    headers         jsonb,                          -- checked: safe to send
    created_at      timestamptz NOT NULL,           -- the outbox row's
    taken_at        timestamptz NOT NULL DEFAULT now(),
    duplicate_of    uuid                            -- the event that had this idempotency key first; such a row has no deliveries
) PARTITION BY RANGE (id);
CREATE INDEX events_by_request ON events (tenant_id, request_id);

-- One row per (tenant, idempotency key) ever taken: what makes the second one a duplicate. Insert-only.
CREATE TABLE event_keys (
    tenant_id       text NOT NULL,
    idempotency_key text NOT NULL,
    event_id        uuid NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, idempotency_key)
);

-- ---------------------------------------------------------------------------------------------------------------------
-- One event for one endpoint. May be claimed exactly when due_at <= now(). Every write names the state and generation it
-- expects and writes nothing otherwise.
CREATE TABLE deliveries (
    id              uuid PRIMARY KEY DEFAULT homing_uuid7(), -- never
    tenant_id       text NOT NULL,                  -- never
    event_id        uuid NOT NULL,                  -- never
    endpoint_id     uuid NOT NULL,                  -- never
    -- pending: no attempt yet. delivering: an attempt holds a lease. delivered: 2xx recorded; final. retry_scheduled: the
    -- last attempt failed transiently. failed: automatic attempts are over, evidence not yet filed. dead_lettered: filed in
    -- dead_letters. replayed: a person sent it again, no attempt since.
    state           text NOT NULL DEFAULT 'pending' CHECK (state IN
                    ('pending', 'delivering', 'delivered', 'retry_scheduled', 'failed', 'dead_lettered', 'replayed')),
    -- Schedule, lease and visibility timeout in one: now, at fan-out and replay; a lease ahead, at claim and at start; the
    -- next attempt's time, at a retry; infinity while its endpoint is not active; null once there is nothing more to do.
    due_at          timestamptz DEFAULT now(),
    generation      integer NOT NULL DEFAULT 0,     -- the fence: +1 at each claim and replay
    lease_owner     text,                           -- which process holds it; set at claim and start, null otherwise
    attempts        integer NOT NULL DEFAULT 0 CHECK (attempts >= 0), -- +1 at each start; 0 again at replay
    unknown_streak  integer NOT NULL DEFAULT 0,     -- starts in a row without a recorded result; 0 at each result
    replays         integer NOT NULL DEFAULT 0,     -- +1 at each replay
    last_attempt_at timestamptz,                    -- at each start
    last_outcome    text,                           -- of the last finished attempt; at each result
    last_class      text,                           -- its class of failure; null when it was delivered
    last_status     integer,                        -- its HTTP status; null when there was no answer
    last_error      text,                           -- its error summary, redacted
    created_at      timestamptz NOT NULL DEFAULT now(), -- never
    delivered_at    timestamptz,                    -- once, with state delivered
    failed_at       timestamptz,                    -- with state failed; null again at replay
    CONSTRAINT deliveries_due CHECK ((state IN ('delivered', 'dead_lettered')) = (due_at IS NULL)),
    CONSTRAINT deliveries_lease CHECK (state <> 'delivering' OR (lease_owner IS NOT NULL AND last_attempt_at IS NOT NULL)),
    CONSTRAINT deliveries_delivered CHECK ((state = 'delivered') = (delivered_at IS NOT NULL)),
    CONSTRAINT deliveries_failed CHECK ((state IN ('failed', 'dead_lettered')) = (failed_at IS NOT NULL)),
    CONSTRAINT deliveries_fresh CHECK (state <> 'pending' OR (attempts = 0 AND replays = 0))
) PARTITION BY RANGE (id);
CREATE INDEX deliveries_due_at ON deliveries (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_by_event ON deliveries (event_id);
CREATE INDEX deliveries_by_endpoint ON deliveries (endpoint_id, id);

-- One HTTP call. Insert-only, when its result is recorded, or, with outcome unknown, when its lease ran out.
CREATE TABLE delivery_attempts (
    delivery_id      uuid NOT NULL,
    generation       integer NOT NULL,              -- the generation it was made under; one attempt each
    tenant_id        text NOT NULL,
    number           integer NOT NULL,              -- 1 is the first since fan-out or replay
    started_at       timestamptz NOT NULL,
    duration_ms      integer,                       -- null when unknown
    outcome          text NOT NULL CHECK (outcome IN ('delivered', 'transient', 'gone', 'definite', 'unknown')),
    failure_class    text,                          -- null when delivered
    retryable        boolean NOT NULL,
    http_status      integer,
    error            text,                          -- at most 500 characters, redacted
    response_excerpt text,                          -- at most 2 KiB, redacted
    retry_at         timestamptz,                   -- when the next attempt was scheduled; null: there is none
    worker           text,                          -- which process made it
    PRIMARY KEY (delivery_id, generation)
) PARTITION BY RANGE (delivery_id);

-- ---------------------------------------------------------------------------------------------------------------------
-- Everything needed to send it again, and to say why it stopped. One row each time a delivery ran out.
CREATE TABLE dead_letters (
    id               uuid PRIMARY KEY DEFAULT homing_uuid7(),
    delivery_id      uuid NOT NULL,
    generation       integer NOT NULL,              -- of the delivery when it was filed
    tenant_id        text NOT NULL,
    endpoint_id      uuid NOT NULL,
    event_id         uuid NOT NULL,
    event_type       text NOT NULL,
    request_id       text NOT NULL,
    traceparent      text,
    idempotency_key  text,
    run_id           text,
    payload          text NOT NULL,                 -- snapshot of the body
    headers          jsonb,                         -- snapshot of the event's own headers
    response         text,                          -- snapshot of the last answer's excerpt; null: there was none
    failure_class    text NOT NULL,                 -- http_status, timeout, quarantined, ...
    failure_detail   text,
    last_http_status integer,
    attempts         integer NOT NULL,
    -- open: waits for a person. replayed: sent again, result not known yet. resolved: that replay was delivered.
    -- A replay that fails again leaves this row replayed, and files another, open.
    status           text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'replayed', 'resolved')),
    created_at       timestamptz NOT NULL DEFAULT now(), -- never
    updated_at       timestamptz NOT NULL DEFAULT now(), -- with each change of status
    UNIQUE (delivery_id, generation)
);
CREATE INDEX dead_letters_by_tenant ON dead_letters (tenant_id, id);
CREATE INDEX dead_letters_by_request ON dead_letters (tenant_id, request_id);

-- A person's wish to send something again. Carried out by the replay actor.
CREATE TABLE replays (
    id              uuid PRIMARY KEY DEFAULT homing_uuid7(),
    tenant_id       text NOT NULL,
    request_id      text NOT NULL,                  -- what it selects: the deliveries of this request id
    reason          text NOT NULL CHECK (reason <> ''),
    actor           text NOT NULL,                  -- who asked
    idempotency_key text,                           -- the same key and body: the same replay
    body_digest     bytea NOT NULL,                 -- SHA-256 of what was asked for, to tell a repeat from a conflict
    skipped         jsonb NOT NULL DEFAULT '{}',    -- how many deliveries it left alone, by state; never
    state           text NOT NULL DEFAULT 'requested' CHECK (state IN ('requested', 'done')), -- done by the replay actor
    due_at          timestamptz DEFAULT now(),      -- as in deliveries; null once done
    generation      integer NOT NULL DEFAULT 0,     -- as in deliveries
    created_at      timestamptz NOT NULL DEFAULT now(),
    done_at         timestamptz,
    CONSTRAINT replays_due CHECK ((state = 'done') = (due_at IS NULL)),
    UNIQUE (tenant_id, idempotency_key)
);
CREATE INDEX replays_due_at ON replays (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX replays_by_request ON replays (tenant_id, request_id);

CREATE TABLE replay_items (
    replay_id      uuid NOT NULL REFERENCES replays,
    delivery_id    uuid NOT NULL,
    previous_state text,                            -- what the delivery really was when it was replayed
    -- requested: waits for the actor. replayed: sent again. resolved: that was delivered. failed: it ran out again.
    -- conflict: it was no longer failed or dead-lettered when the actor came to it.
    state          text NOT NULL DEFAULT 'requested'
                   CHECK (state IN ('requested', 'replayed', 'resolved', 'failed', 'conflict')),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (replay_id, delivery_id)
);
-- At most one open replay per delivery; also how a result finds the item it settles.
CREATE UNIQUE INDEX replay_items_open ON replay_items (delivery_id) WHERE state IN ('requested', 'replayed');

-- What people and Homing did to endpoints and deliveries. Insert-only.
CREATE TABLE audit_events (
    id          uuid PRIMARY KEY DEFAULT homing_uuid7(),
    tenant_id   text NOT NULL,
    action      text NOT NULL,                      -- such as endpoint.disabled, delivery.replayed
    subject     text NOT NULL,                      -- id of what it was done to
    before      jsonb,
    after       jsonb,
    actor       text NOT NULL,
    reason      text,
    request_id  text,
    traceparent text,
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX audit_events_by_request ON audit_events (tenant_id, request_id);

-- ---------------------------------------------------------------------------------------------------------------------
-- Partitions: one a week (Monday, UTC) of the three tables that grow with traffic, and a default one for ids that carry
-- no time. Retention drops a partition. Made ahead by the poller; safe to call from several at once.
CREATE TABLE events_default PARTITION OF events DEFAULT;
CREATE TABLE deliveries_default PARTITION OF deliveries DEFAULT;
CREATE TABLE delivery_attempts_default PARTITION OF delivery_attempts DEFAULT;

CREATE FUNCTION homing_ensure_partitions(weeks_ahead integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    week timestamptz;
    parent text;
    child text;
    key text;
    bounds text[];
    strays boolean;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(1752132966);
    FOR n IN 0..weeks_ahead LOOP
        week := (date_trunc('week', now() AT TIME ZONE 'UTC') + n * interval '1 week') AT TIME ZONE 'UTC';
        FOREACH parent IN ARRAY ARRAY['events', 'deliveries', 'delivery_attempts'] LOOP
            child := parent || '_' || to_char(week AT TIME ZONE 'UTC', 'YYYYMMDD');
            CONTINUE WHEN to_regclass(child) IS NOT NULL;
            key := CASE parent WHEN 'delivery_attempts' THEN 'delivery_id' ELSE 'id' END;
            bounds := ARRAY[homing_uuid7_floor(week), homing_uuid7_floor(week + interval '1 week')]::text[];
            -- Rows whose ids were ahead of their time wait in the default partition; they move to where they belong.
            EXECUTE format('SELECT EXISTS (SELECT FROM %I WHERE %I >= %L AND %I < %L)',
                           parent || '_default', key, bounds[1], key, bounds[2]) INTO strays;
            IF strays THEN
                EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', parent || '_default');
                EXECUTE format('CREATE TEMPORARY TABLE homing_strays ON COMMIT DROP AS '
                               'SELECT * FROM %I WHERE %I >= %L AND %I < %L',
                               parent || '_default', key, bounds[1], key, bounds[2]);
                EXECUTE format('DELETE FROM %I WHERE %I >= %L AND %I < %L',
                               parent || '_default', key, bounds[1], key, bounds[2]);
            END IF;
            EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)', child, parent,
                           bounds[1], bounds[2]);
            IF strays THEN
                EXECUTE format('INSERT INTO %I SELECT * FROM homing_strays', parent);
                DROP TABLE homing_strays;
            END IF;
            IF parent = 'deliveries' THEN
                EXECUTE format('ALTER TABLE %I SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, '
                               'autovacuum_vacuum_threshold = 5000)', child);
            END IF;
            made := made + 1;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;
SELECT homing_ensure_partitions(4);

-- ---------------------------------------------------------------------------------------------------------------------
-- For people who join it with their own tables: one row per delivery.
CREATE VIEW delivery_status AS
SELECT d.id AS delivery_id, d.tenant_id, e.request_id, d.event_id, e.event_type, d.endpoint_id, p.url AS endpoint_url,
       d.state, d.attempts, d.last_status, d.last_class, d.last_error,
       CASE WHEN d.state IN ('pending', 'retry_scheduled', 'replayed') THEN nullif(d.due_at, 'infinity') END AS next_attempt_at,
       coalesce(d.due_at = 'infinity', false) AS parked,
       d.last_attempt_at, d.created_at, d.delivered_at, d.failed_at, d.replays
FROM deliveries d
JOIN events e ON e.id = d.event_id
JOIN endpoints p ON p.id = d.endpoint_id;
