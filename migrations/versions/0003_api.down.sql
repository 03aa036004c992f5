-- Takes back what 0003_api.up.sql made. The role goes too, unless another database of this server grants it something.
DROP VIEW outbox_of_tenant;
DROP VIEW outbox_rejected_of_tenant;
DROP INDEX outbox_rejected_by_request;
DROP FUNCTION homing_build_api_wall();

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['tenants', 'endpoints', 'endpoint_secrets', 'events', 'deliveries', 'delivery_attempts',
                                'dead_letters', 'replays', 'replay_items', 'audit_events'] LOOP
        EXECUTE format('DROP POLICY homing_wall ON %I', name);
        EXECUTE format('ALTER TABLE %I DISABLE ROW LEVEL SECURITY', name);
    END LOOP;
END
$$;
DROP TABLE api_keys, idempotency_keys;

DO $$
DECLARE
    name text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'homing_api') THEN
        RETURN;
    END IF;
    FOREACH name IN ARRAY ARRAY['tenants', 'endpoints', 'endpoint_secrets', 'events', 'deliveries', 'delivery_attempts',
                                'dead_letters', 'replays', 'replay_items', 'audit_events'] LOOP
        EXECUTE format('REVOKE ALL ON %I FROM homing_api', name);
    END LOOP;
    EXECUTE format('REVOKE ALL ON SCHEMA %I FROM homing_api', current_schema());
    BEGIN
        DROP ROLE homing_api;
    EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege OR undefined_object THEN
        NULL;
    END;
END
$$;

DROP INDEX deliveries_by_tenant, deliveries_ran_out, dead_letters_by_endpoint;
