"use strict";
// Moves outbox rows to deliveries, and adds their jobs in bulk after the commit; for ever.

const { setTimeout: sleep } = require("node:timers/promises");
const { Queue } = require("bullmq");
const { Client } = require("pg");
const { BATCH, IDLE_MS, RETRIES, DATABASE_URL, CLAIM, redisConnection } = require("./webhooks.js");

const opts = {
  attempts: RETRIES + 1,
  backoff: { type: "exponential", delay: 10_000, jitter: 0.5 },
  removeOnComplete: true,
  removeOnFail: false,
};

async function relay() {
  const queue = new Queue("deliveries", { connection: redisConnection() });
  const client = new Client({ connectionString: DATABASE_URL });
  await client.connect();
  for (;;) {
    const { rows } = await client.query({ name: "claim", text: CLAIM, values: [BATCH] });
    if (rows.length) await queue.addBulk(rows.map((data) => ({ name: "deliver", data, opts })));
    else await sleep(IDLE_MS);
  }
}

relay().catch((error) => {
  console.error(error);
  process.exit(1);
});
