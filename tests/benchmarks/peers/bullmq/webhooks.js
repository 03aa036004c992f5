"use strict";
// What relay and worker share: settings, the outbox's two statements, and the signature of a request.

const { createHmac } = require("node:crypto");

const RETRIES = 4;

// Takes outbox rows, fans them out, and answers everything that a request needs, so that no worker has to read it again.
const CLAIM = `
  WITH claimed AS (
    DELETE FROM outbox WHERE id IN (
      SELECT id FROM outbox ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED
    ) RETURNING id, event_type, payload
  )
  INSERT INTO deliveries (id, event_id, endpoint_url, secret, payload)
  SELECT gen_random_uuid(), claimed.id, endpoints.url, endpoints.secret, claimed.payload::text
  FROM claimed JOIN endpoints USING (event_type)
  RETURNING id, event_id, endpoint_url, secret, payload`;

const RECORD = `
  UPDATE deliveries SET
    attempts = attempts + 1,
    last_status = $2,
    state = CASE WHEN $3::boolean THEN 'delivered' WHEN attempts >= ${RETRIES} THEN 'failed' ELSE 'retrying' END,
    delivered_at = CASE WHEN $3::boolean THEN now() END
  WHERE id = $1 AND state <> 'delivered'`;

// Standard Webhooks 1.0.0.
function headers(eventId, secret, body) {
  const timestamp = Math.floor(Date.now() / 1000);
  const key = Buffer.from(secret.replace(/^whsec_/, ""), "base64");
  const signature = createHmac("sha256", key).update(`${eventId}.${timestamp}.${body}`).digest("base64");
  return {
    "content-type": "application/json",
    "webhook-id": eventId,
    "webhook-timestamp": String(timestamp),
    "webhook-signature": `v1,${signature}`,
  };
}

function redisConnection() {
  const url = new URL(process.env.PEER_REDIS_URL);
  return {
    host: url.hostname,
    port: Number(url.port || 6379),
    username: decodeURIComponent(url.username) || undefined,
    password: decodeURIComponent(url.password) || undefined,
    db: Number(url.pathname.slice(1) || 0),
    maxRetriesPerRequest: null,
  };
}

module.exports = {
  BATCH: 500,
  IDLE_MS: 10,
  TIMEOUT_MS: 15_000,
  CONCURRENCY: Number(process.env.PEER_CONCURRENCY),
  POOL_SIZE: Number(process.env.PEER_POOL_SIZE || 8),
  DATABASE_URL: process.env.PEER_DATABASE_URL,
  RETRIES,
  CLAIM,
  RECORD,
  headers,
  redisConnection,
};
