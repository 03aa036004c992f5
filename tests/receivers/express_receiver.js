// A receiver with Express 5 that needs nothing of Homing: node:crypto verifies. What it has seen is lost when it ends.
// Start: WEBHOOK_SECRETS="whsec_..." LEDGER=ledger.txt node express_receiver.js

import { createHmac, timingSafeEqual } from "node:crypto";
import { appendFile } from "node:fs/promises";
import express from "express";

const WINDOW_S = 300;
const KEEP_MS = 24 * 60 * 60 * 1000;
const IDS_MAX = 100_000;

// Two of them while a secret is rotated, separated by a space.
const keys = (process.env.WEBHOOK_SECRETS ?? "").split(" ").map((secret) => {
  const key = Buffer.from(secret.replace(/^whsec_/, ""), "base64");
  if (!/^whsec_[A-Za-z0-9+/]+={0,2}$/.test(secret) || key.length < 24 || key.length > 64) {
    throw new Error("WEBHOOK_SECRETS must be whsec_ and base64 of 24 to 64 bytes");
  }
  return key;
});

/** The id of a genuine and recent event; null for everything else. */
function verify(headers, body) {
  const id = headers["webhook-id"] ?? "";
  const timestamp = headers["webhook-timestamp"] ?? "";
  const signatures = (headers["webhook-signature"] ?? "").split(" ");
  if (!/^[A-Za-z0-9_:-]{1,255}$/.test(id) || !/^[0-9]{1,15}$/.test(timestamp)) return null;
  if (Math.abs(Date.now() / 1000 - Number(timestamp)) > WINDOW_S) return null;
  let genuine = false;
  for (const key of keys) {
    const mac = createHmac("sha256", key).update(`${id}.${timestamp}.`).update(body).digest("base64");
    const expected = Buffer.from(`v1,${mac}`);
    for (const signature of signatures) {
      const given = Buffer.from(signature);
      if (given.length === expected.length && timingSafeEqual(given, expected)) genuine = true;
    }
  }
  return genuine ? id : null;
}

const working = new Set();
const done = new Map(); // id -> when, oldest first

function forgetOld() {
  for (const [id, when] of done) {
    if (done.size <= IDS_MAX && Date.now() - when < KEEP_MS) break;
    done.delete(id);
  }
}

/** Yours; here a line in a file. */
async function work(event) {
  if (event.invoice === undefined) throw new Error("an event without an invoice");
  await appendFile(process.env.LEDGER, `${event.invoice}\n`);
}

const app = express();

// express.raw keeps the bytes as they arrived, and express.json does not. Homing sends up to 1 MiB; its default is 100 kB.
app.post("/hook", express.raw({ type: () => true, limit: "2mb", inflate: false }), async (request, response) => {
  const body = Buffer.isBuffer(request.body) ? request.body : Buffer.alloc(0);
  const id = verify(request.headers, body);
  if (id === null) return response.sendStatus(401);
  forgetOld();
  if (done.has(id)) return response.sendStatus(204);
  if (working.has(id)) return response.set("Retry-After", "5").sendStatus(503);
  working.add(id);
  try {
    await work(JSON.parse(body)); // an error becomes a 500, and the event comes again
    done.set(id, Date.now()); // after the work, before the answer
  } finally {
    working.delete(id);
  }
  response.sendStatus(204);
});

const server = app.listen(process.env.PORT ?? 3000, "127.0.0.1", (error) => {
  if (error) throw error;
  console.log(`listening on http://127.0.0.1:${server.address().port}`);
});
