-- What every peer works on: the producer's outbox, the endpoints, and one row per delivery with its result.
-- Nothing indexes what a result changes, and pages keep room, so that recording it is a HOT update.

CREATE TABLE outbox (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    event_type text NOT NULL,
    payload jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX outbox_created_at ON outbox (created_at);

CREATE TABLE endpoints (
    event_type text NOT NULL,
    url text NOT NULL,
    secret text NOT NULL,
    PRIMARY KEY (event_type, url)
);

CREATE TABLE deliveries (
    id uuid PRIMARY KEY,
    event_id uuid NOT NULL,
    endpoint_url text NOT NULL,
    secret text NOT NULL,
    payload text NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    attempts int NOT NULL DEFAULT 0,
    last_status int,
    due_at timestamptz NOT NULL DEFAULT now(),
    delivered_at timestamptz
) WITH (fillfactor = 60);
