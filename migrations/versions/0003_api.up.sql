-- What the HTTP API needs. As in 0001, every column says: initial value; who changes it; when. "never" means insert-only.

-- ---------------------------------------------------------------------------------------------------------------------
-- Keys of the HTTP API: `homing_live_<id>_<secret><check>`. The key itself is not kept, only what recognises it.
CREATE TABLE api_keys (
    id           text PRIMARY KEY CHECK (id ~ '^[a-z0-9]{12}$'), -- the public part, names the key in audit trails; never
    tenant_id    text REFERENCES tenants,                   -- whose data it opens; null: an operator's, opens no data; never
    name         text NOT NULL DEFAULT '',                  -- for people; never
    hash         bytea NOT NULL CHECK (octet_length(hash) = 32), -- SHA-256 of the whole key; never
    scopes       text[] NOT NULL                            -- what it may do; never
                 CHECK (cardinality(scopes) BETWEEN 1 AND 6 AND scopes <@ ARRAY['events:write', 'deliveries:read',
                        'endpoints:write', 'replay:write', 'audit:read', 'admin']),
    created_by   text NOT NULL,                             -- never
    created_at   timestamptz NOT NULL DEFAULT now(),        -- never
    expires_at   timestamptz,                               -- null: never; never
    revoked_at   timestamptz,                               -- null until somebody revokes it; once
    last_used_at timestamptz,                               -- at a use, at most once a minute
    CONSTRAINT api_keys_operator CHECK (tenant_id IS NOT NULL OR scopes = '{admin}')
);
CREATE INDEX api_keys_by_tenant ON api_keys (tenant_id, id);

-- What a write with an Idempotency-Key answered, written in the transaction of its effect. Insert-only; forgotten after a week.
CREATE TABLE idempotency_keys (
    tenant_id   text NOT NULL,                  -- '*': an act of an operator's that is no tenant's
    key         text NOT NULL CHECK (char_length(key) BETWEEN 1 AND 255),
    target      text NOT NULL,                  -- method and path: what was done to what
    body_digest bytea NOT NULL,                 -- SHA-256 of the request's body
    status      integer NOT NULL,
    headers     jsonb NOT NULL,
    body        bytea NOT NULL,                 -- the answer's; sealed when it shows a secret
    sealed      boolean NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, key)
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

-- ---------------------------------------------------------------------------------------------------------------------
-- Listings, newest first. Every one starts from an index and looks at a bounded number of rows.
CREATE INDEX deliveries_by_tenant ON deliveries (tenant_id, id);
-- Only what ran out is in it: the way of a delivery that succeeds never touches it.
CREATE INDEX deliveries_ran_out ON deliveries (tenant_id, id) WHERE state IN ('failed', 'dead_lettered');
CREATE INDEX dead_letters_by_endpoint ON dead_letters (tenant_id, endpoint_id, id);

-- ---------------------------------------------------------------------------------------------------------------------
-- The wall. Every statement of the API names its tenant; should one forget to, it still sees that tenant's rows only: the
-- API's transactions run as the role homing_api with the setting homing.tenant, and these policies hold for that role alone.
-- Everybody else (the owner, the poller, workers, producers, people with grants of their own) is not affected.
-- Partitions need none: whoever reads them through their parent is judged by the parent's policy, and the role may not
-- read them otherwise.
ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
CREATE POLICY homing_wall ON tenants USING (
    current_user <> 'homing_api' OR id = current_setting('homing.tenant', true)
    OR current_setting('homing.tenant', true) = '*');

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['endpoints', 'events', 'deliveries', 'delivery_attempts', 'dead_letters', 'replays',
                                'audit_events', 'api_keys', 'idempotency_keys'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY homing_wall ON %I USING (current_user <> ''homing_api'' '
                       'OR tenant_id = current_setting(''homing.tenant'', true))', name);
    END LOOP;
END
$$;

-- These two have no tenant of their own: it is that of the row they belong to, which the wall lets through or not.
ALTER TABLE endpoint_secrets ENABLE ROW LEVEL SECURITY;
CREATE POLICY homing_wall ON endpoint_secrets USING (
    current_user <> 'homing_api' OR EXISTS (SELECT FROM endpoints p WHERE p.id = endpoint_id));
ALTER TABLE replay_items ENABLE ROW LEVEL SECURITY;
CREATE POLICY homing_wall ON replay_items USING (
    current_user <> 'homing_api' OR EXISTS (SELECT FROM replays r WHERE r.id = replay_id));

-- The outbox is the producers', and COPY does not work on tables with policies: the API sees it through these.
CREATE VIEW outbox_of_tenant WITH (security_barrier) AS
    SELECT * FROM outbox_events WHERE tenant_id = current_setting('homing.tenant', true)
    WITH CHECK OPTION;
CREATE VIEW outbox_rejected_of_tenant WITH (security_barrier) AS
    SELECT * FROM outbox_rejected WHERE tenant_id = current_setting('homing.tenant', true);
-- A request id is looked for where it waits, too.
-- Producers write both columns, so they may be longer than an index holds.
CREATE INDEX outbox_rejected_by_request ON outbox_rejected (tenant_id, request_id)
    WHERE length(tenant_id) <= 64 AND length(request_id) <= 256;

-- Makes the role, lets the one who calls this act as it, and grants what the API does. False, with a warning, when whoever
-- calls this may not make roles: then somebody who may runs `SELECT homing_build_api_wall()`, or
-- `CREATE ROLE homing_api NOLOGIN; GRANT homing_api TO <the role in HOMING_DATABASE_URL>` and this again.
CREATE FUNCTION homing_build_api_wall() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'homing_api') THEN
        BEGIN
            CREATE ROLE homing_api NOLOGIN;
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE WARNING 'the role homing_api could not be made: tenants are kept apart by the statements alone'
                    USING HINT = 'let a role with CREATEROLE run: SELECT homing_build_api_wall()';
                RETURN false;
            WHEN duplicate_object OR unique_violation THEN
                NULL; -- the migration of another database of this server was faster
        END;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = current_user AND rolsuper)
       AND NOT pg_has_role(current_user, 'homing_api', 'MEMBER') THEN
        BEGIN
            EXECUTE format('GRANT homing_api TO %I', current_user);
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE WARNING 'this role may not act as homing_api: tenants are kept apart by the statements alone'
                USING HINT = format('let a superuser run: GRANT homing_api TO %I', current_user);
            RETURN false;
        END;
    END IF;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO homing_api', current_schema());
    GRANT SELECT, INSERT ON tenants, events, replays, replay_items, audit_events, idempotency_keys TO homing_api;
    GRANT SELECT ON deliveries, delivery_attempts, dead_letters, outbox_rejected_of_tenant TO homing_api;
    GRANT SELECT, INSERT ON outbox_of_tenant TO homing_api;
    GRANT SELECT, INSERT, UPDATE ON endpoints TO homing_api;
    -- What seals and what recognises is written, and never read.
    GRANT SELECT (id, endpoint_id, key_id, created_at, expires_at), INSERT, UPDATE (expires_at) ON endpoint_secrets TO homing_api;
    GRANT SELECT (id, tenant_id, name, scopes, created_by, created_at, expires_at, revoked_at, last_used_at), INSERT,
          UPDATE (revoked_at) ON api_keys TO homing_api;
    GRANT INSERT (tenant_id, event_id, endpoint_id), UPDATE (due_at) ON deliveries TO homing_api;
    GRANT UPDATE (state, updated_at) ON replay_items TO homing_api;
    GRANT UPDATE (state, due_at, done_at, cancelled_by, cancel_reason, skipped) ON replays TO homing_api;
    RETURN true;
END
$$;
SELECT homing_build_api_wall();
