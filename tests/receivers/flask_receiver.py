"""A receiver with Flask. Several processes share what they have seen through Redis or Valkey: RedisMemory.

Start: WEBHOOK_SECRETS="whsec_..." REDIS_URL="redis://..." LEDGER=ledger.txt flask --app flask_receiver run
"""

import json
import os
from pathlib import Path

import redis
from flask import Flask, request
from homing_verifier import RedisMemory, Turn, Verifier

verifier = Verifier(os.environ["WEBHOOK_SECRETS"].split())  # two of them while a secret is rotated
memory = RedisMemory(redis.Redis.from_url(os.environ["REDIS_URL"]), "shop")
app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 2 * 1024 * 1024  # Homing sends up to 1 MiB


@app.post("/hook")
def hook():
    body = request.get_data()  # the bytes as they arrived: not request.json
    result = verifier.verify(request.headers, body)
    if not result:
        app.logger.warning("refused: %s: %s", result.reason, result.detail)
        return "", 401
    turn = memory.begin(result.event_id)
    if turn is Turn.DONE:
        return "", 204
    if turn is Turn.BUSY:
        return "", 503, {"Retry-After": "5"}
    try:
        work(json.loads(body))
    except BaseException:
        memory.release(result.event_id)
        raise  # becomes a 500, and the event comes again
    memory.done(result.event_id)  # after the work, before the answer
    return "", 204


def work(event):
    """Yours; here a line in a file."""
    with Path(os.environ["LEDGER"]).open("a", encoding="utf-8") as ledger:
        ledger.write(f"{event['invoice']}\n")
