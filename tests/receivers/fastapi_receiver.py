"""A receiver with FastAPI. Its work is in PostgreSQL, so it happens exactly once: PostgresMemory.

Start: WEBHOOK_SECRETS="whsec_..." DATABASE_URL="postgresql://..." uvicorn fastapi_receiver:app
"""

import json
import os

import psycopg
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from homing_verifier import PostgresMemory, Turn, Verifier

verifier = Verifier(os.environ["WEBHOOK_SECRETS"].split())  # two of them while a secret is rotated
app = FastAPI()


@app.post("/hook")
async def hook(request: Request) -> Response:
    body = await request.body()  # the bytes as they arrived: not request.json(), not a model
    result = verifier.verify(request.headers, body)
    if not result:
        print(f"refused: {result.reason}: {result.detail}", flush=True)
        return Response(status_code=401)
    await run_in_threadpool(work_once, result.event_id, body)  # an error becomes a 500, and the event comes again
    return Response(status_code=204)


def work_once(event_id: str, body: bytes) -> None:
    # Everything or nothing: committed at the end of the block, rolled back by an error or a crash.
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        if PostgresMemory(connection, "shop").begin(event_id) is Turn.FIRST:
            event = json.loads(body)
            connection.execute("INSERT INTO payments (invoice) VALUES (%s)", (str(event["invoice"]),))
