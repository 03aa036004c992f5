"""F37: the API killed around the commit of a write, and a client that asks again under the same Idempotency-Key."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import psycopg

from app.api_keys import Scope, create_key
from app.embedded.files import log_since
from workers.chaos.fleet import START_LIMIT_S, Child, ProcessFailed
from workers.chaos.load import TENANTS, Destination
from workers.chaos.scenario import Expect, Scenario
from workers.chaos.trial import Trial

#: Place of death -> how many events there are when the client has seen its connection break.
PLACES = {"write.before_commit": 0, "write.committed": 1}
ANSWER_LIMIT_S = 30.0

_FOUND = """
    SELECT request_id, count(*)::integer AS n FROM (
        SELECT request_id FROM outbox_events UNION ALL SELECT request_id FROM events) AS anywhere
    WHERE request_id = ANY(%(names)s) GROUP BY request_id
"""
_ORDER = """
    INSERT INTO orders (event_id, tenant_id, event_type, payload)
    VALUES (%(event_id)s, %(tenant)s, %(type)s, %(payload)s)
"""


@dataclass(frozen=True)
class Wish:
    """One event that a client wants to be there once, and the place at which the API dies when it is first asked."""

    place: str
    name: str
    event_type: str
    payload: dict[str, Any]

    @property
    def key(self) -> str:
        return f"key-{self.name}"

    def body(self, **changes: Any) -> bytes:
        """The request's body, or another one."""
        event = {"event_type": self.event_type, "request_id": self.name, "payload": self.payload | changes}
        return json.dumps(event, ensure_ascii=False).encode()


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    replayed: bool


@dataclass(frozen=True)
class Client:
    """A producer that knows Homing by HTTP only, with a key of its tenant's."""

    api_key: str = field(repr=False)

    async def publish(self, port: int, wish: Wish, body: bytes) -> Answer | None:
        """`POST /v1/events` under the wish's key; None when the connection broke before the answer was there."""
        return await asyncio.to_thread(self._publish, port, wish.key, body)

    def _publish(self, port: int, key: str, body: bytes) -> Answer | None:
        headers = {
            "Authorization": f"Bearer {self.api_key}",
            "Idempotency-Key": key,
            "Content-Type": "application/json",
        }
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_LIMIT_S)
        try:
            connection.request("POST", "/v1/events", body, headers)
            response = connection.getresponse()
            said = response.read()
        except (ConnectionError, http.client.IncompleteRead):
            return None
        finally:
            connection.close()
        return Answer(response.status, said, response.headers.get("Idempotency-Replayed") == "true")


async def killed_around_commit(trial: Trial) -> None:
    """Whether the event is there the client cannot know; asking again must make it one, and give one answer."""
    tenant = TENANTS[0]
    await trial.add(
        Destination("api-all", tenant, ("api.*",)), Destination("api-one", tenant, ("api.1",), scheme="hex")
    )
    async with trial.engine.begin() as connection:
        made = await create_key(connection, tenant_id=tenant, scopes=[Scope.EVENTS_WRITE], actor="chaos")
    trial.audit["key.created"] = 1
    client = Client(made["key"])
    from_memory: Counter[str] = Counter()
    # Several die before the API is started again: starts are what takes time here.
    for _ in range(trial.times(1, 2)):
        wishes = [_wish(trial, place) for _ in range(trial.times(2, 5)) for place in PLACES]
        await _asked_in_vain(trial, client, wishes)
        api, port = _start(trial)
        await _serving(port, api)
        for wish in wishes:
            from_memory[wish.place] += await _asked_again(trial, client, port, wish)
        await trial.fleet.terminate(api)
        await _check_one_each(trial, wishes)
    trial.figures["first_repeats_from_memory"] = {place: from_memory[place] for place in PLACES}
    logs = "".join(child.said() for child in trial.fleet.children)
    trial.check(client.api_key.rpartition("_")[2] not in logs, "the client's key is in a log")


def _wish(trial: Trial, place: str) -> Wish:
    number = trial.random.getrandbits(64)
    payload = {"n": number, "text": "Grüße ☃ " + "x" * trial.random.randrange(200)}
    return Wish(place, f"wish-{number:016x}", f"api.{trial.random.randrange(3)}", payload)


async def _asked_in_vain(trial: Trial, client: Client, wishes: Sequence[Wish]) -> None:
    """Each asks an API of its own, which is killed at the wish's place."""
    victims = [_start(trial, f"{wish.place}=kill") for wish in wishes]
    await asyncio.gather(*(_serving(port, child) for child, port in victims))
    answers = await asyncio.gather(
        *(client.publish(port, w, w.body()) for (_, port), w in zip(victims, wishes, strict=True))
    )
    for (child, _), wish, answer in zip(victims, wishes, answers, strict=True):
        died = await trial.fleet.wait(child, 15) == -signal.SIGKILL
        trial.faults += died
        trial.check(died, f"the API did not die at {wish.place}")
        trial.check(answer is None, f"the API was to die at {wish.place}, and answered")
    found = await _found(trial, wishes)
    for wish in wishes:
        there, wanted = found[wish.name], PLACES[wish.place]
        trial.check(there == wanted, f"killed at {wish.place}: {there} events in Postgres, not {wanted}")


async def _asked_again(trial: Trial, client: Client, port: int, wish: Wish) -> bool:
    """The same request twice more, then another one under its key; whether the first answer came from memory."""
    first, second = [await client.publish(port, wish, wish.body()) for _ in range(2)]
    other = await client.publish(port, wish, wish.body(other=True))
    if first is None or second is None or other is None:
        trial.check(False, f"killed at {wish.place}: a later request was not answered")
        return False
    where = f"killed at {wish.place}, asked again"
    trial.check(first.status == second.status == 202, f"{where}: answered {first.status} and {second.status}")
    trial.check(first.body == second.body, f"{where}: two answers that differ")
    remembered = PLACES[wish.place] == 1
    trial.check(first.replayed == remembered, f"{where}: the first answer has Idempotency-Replayed {first.replayed}")
    trial.check(second.replayed, f"{where}: the second answer does not say that it is one")
    refused = other.status == 409 and json.loads(other.body).get("error_code") == "INT-409-IDEMPOTENCY-CONFLICT"
    trial.check(refused, f"{where} with another body: answered {other.status}")
    if first.status == 202:
        await asyncio.to_thread(_order, trial.database_url, wish, json.loads(first.body)["id"])
    return first.replayed


def _order(database_url: str, wish: Wish, event_id: str) -> None:
    """The client's own books: the one event that it was told of. For the judge, any other is one that nobody asked for."""
    fields = {"event_id": event_id, "tenant": TENANTS[0], "type": wish.event_type}
    with psycopg.connect(database_url, connect_timeout=5) as connection:
        connection.execute(_ORDER, fields | {"payload": json.dumps(wish.payload, ensure_ascii=False)})


async def _check_one_each(trial: Trial, wishes: Sequence[Wish]) -> None:
    found = await _found(trial, wishes)
    for wish in wishes:
        trial.check(found[wish.name] == 1, f"killed at {wish.place}: {found[wish.name]} events for one key")


async def _found(trial: Trial, wishes: Sequence[Wish]) -> Counter[str]:
    rows = await trial.rows(_FOUND, names=[wish.name for wish in wishes])
    return Counter({row.request_id: row.n for row in rows})


def _start(trial: Trial, failpoints: str = "") -> tuple[Child, int]:
    """`homing api` on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    settings = {"HOMING_API_PORT": str(port)} | ({"HOMING_FAILPOINTS": failpoints} if failpoints else {})
    return trial.fleet.start("api", settings, dies=bool(failpoints)), port


async def _serving(port: int, child: Child) -> None:
    """Wait until it answers.

    Raises:
        ProcessFailed: it ended, or did not answer in time.
    """
    while not await asyncio.to_thread(_answers, port):
        if not child.alive or monotonic() > child.started_at + START_LIMIT_S:
            raise ProcessFailed(f"{child.name} does not answer:\n{log_since(child.log)}")
        await asyncio.sleep(0.1)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


SCENARIOS = (
    Scenario(
        "F37",
        "API killed between commit and answer",
        killed_around_commit,
        (Expect("homing_outbox_taken_total"),),
        workers=1,
        quiet=True,
    ),
)
