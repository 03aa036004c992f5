"use strict";
// BullMQ: one job per delivery, many under way in one process, over kept-alive connections.

const { Worker } = require("bullmq");
const { Pool } = require("pg");
const { Agent } = require("undici");
const { CONCURRENCY, POOL_SIZE, TIMEOUT_MS, DATABASE_URL, RECORD, headers, redisConnection } = require("./webhooks.js");

const database = new Pool({ connectionString: DATABASE_URL, max: POOL_SIZE });
const agent = new Agent({
  connections: CONCURRENCY,
  pipelining: 1,
  connect: { timeout: 5_000 },
  headersTimeout: TIMEOUT_MS,
  bodyTimeout: TIMEOUT_MS,
});

async function deliver({ data }) {
  let status = null;
  try {
    const url = new URL(data.endpoint_url);
    const { statusCode, body } = await agent.request({
      origin: url.origin,
      path: url.pathname + url.search,
      method: "POST",
      headers: headers(data.event_id, data.secret, data.payload),
      body: data.payload,
    });
    await body.dump();
    status = statusCode;
  } catch (error) {
    console.error(String(error));
  }
  const delivered = status !== null && status >= 200 && status < 300;
  await database.query({ name: "record", text: RECORD, values: [data.id, status, delivered] });
  if (!delivered) throw new Error(`answer ${status}`);
}

const worker = new Worker("deliveries", deliver, { connection: redisConnection(), concurrency: CONCURRENCY });
worker.on("error", (error) => console.error(String(error)));
worker.waitUntilReady().then(() => console.log("worker is ready"));

process.on("SIGTERM", async () => {
  await worker.close();
  await database.end();
  process.exit(0);
});
